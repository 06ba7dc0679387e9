"""Servers that cells run on: a model, an accelerator, and the memory that is left for KV."""

from benchmarks.calibration.setup import PUBLISHED_SETUP
from benchmarks.matrix.cells import pool_tokens

A800 = {
    "model": PUBLISHED_SETUP.model,
    "hardware": PUBLISHED_SETUP.hardware,
    "pool_tokens": PUBLISHED_SETUP.pool_tokens,
    "host_tokens": 10 * PUBLISHED_SETUP.pool_tokens,
    "page_tokens": PUBLISHED_SETUP.page_size,
    "chunked_prefill_tokens": PUBLISHED_SETUP.chunked_prefill_tokens,
    "max_running_requests": PUBLISHED_SETUP.max_running_requests,
}
"""The server of TokenCake's published runs as calibrated; ten times its pool on the host is 96 GB."""

_H200_14B = pool_tokens(140e9, 29.5e9, 196_608)
H200 = {
    "model": "qwen2.5-14b",
    "hardware": "h200",
    "pool_tokens": _H200_14B,
    "host_tokens": 2 * _H200_14B,
}
"""What 140 GB leave beside the weights, and SGLang's own default ratio of the host tier."""

_H200_32B = pool_tokens(140e9, 65.5e9, 262_144)
H200_32B = {
    "model": "qwen2.5-32b",
    "hardware": "h200",
    "pool_tokens": _H200_32B,
    "host_tokens": int(100e9 / 262_144) // 16 * 16,
}
"""The paper's second machine: Qwen2.5-32B, and the 100 GB of host memory that it gives."""
