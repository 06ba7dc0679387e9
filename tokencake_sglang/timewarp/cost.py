"""How long a forward pass and a host copy take."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokencake_sglang.timewarp.hardware import HardwareProfile
from tokencake_sglang.timewarp.models import ModelProfile


@dataclass(frozen=True, slots=True)
class Work:
    """One request's part in a forward: ``new_tokens`` are computed after ``context_tokens``."""

    new_tokens: int
    context_tokens: int


class CostModel:
    """A roofline: the longer of arithmetic and memory traffic, plus a fixed overhead.

    Arithmetic: the linear layers for each new token, attention for each (query, key) pair -
    ``n c + n (n + 1) / 2`` pairs for n new tokens after c - and the head once a request.
    Memory: the weights once, and the keys and values of every context once.
    """

    def __init__(self, model: ModelProfile, hardware: HardwareProfile) -> None:
        self.model = model
        self.hardware = hardware
        self._flops_per_s = hardware.peak_flops * hardware.compute_efficiency
        self._bytes_per_s = hardware.memory_bytes_per_s * hardware.memory_efficiency

    def forward_s(self, batch: Sequence[Work]) -> float:
        """Seconds of one forward pass over the batch."""
        model = self.model
        new_tokens = sum(work.new_tokens for work in batch)
        pairs = sum(
            work.new_tokens * work.context_tokens + work.new_tokens * (work.new_tokens + 1) / 2
            for work in batch
        )
        flops = (
            new_tokens * model.layer_flops_per_token
            + pairs * model.attention_flops_per_pair
            + len(batch) * model.head_flops
        )
        kv_tokens = sum(work.new_tokens + work.context_tokens for work in batch)
        traffic = model.weight_bytes_read(new_tokens) + kv_tokens * model.kv_bytes_per_token
        roofline_s = max(flops / self._flops_per_s, traffic / self._bytes_per_s)
        return roofline_s + self.hardware.step_overhead_s

    def load_s(self, tokens: int) -> float:
        """Seconds to copy the KV of ``tokens`` from host to device."""
        return self._copy_s(tokens, self.hardware.host_to_device_bytes_per_s)

    def backup_s(self, tokens: int) -> float:
        """Seconds to copy the KV of ``tokens`` from device to host."""
        return self._copy_s(tokens, self.hardware.device_to_host_bytes_per_s)

    def _copy_s(self, tokens: int, bytes_per_s: float) -> float:
        if tokens == 0:
            return 0.0
        return self.hardware.copy_latency_s + tokens * self.model.kv_bytes_per_token / bytes_per_s
