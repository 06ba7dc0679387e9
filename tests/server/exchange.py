"""What tests say to a server, and how they wait for what follows."""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

POOL_TOKENS = 2048
TURN_TOKENS = 480

SLOW_LINK = ("--tokencake-link-bytes-per-s", "250e3")
"""Of the tiny Llama, 1,000 tokens a second on each of two ranks: no forward hides a turn's load.

At the speed of a real link every load of a model so small is hidden, and nothing is uploaded early.
"""


def random_ids(seed: int, count: int, vocabulary: int = 1024) -> list[int]:
    """Token ids that no other seed shares a prefix with."""
    return random.Random(seed).choices(range(3, vocabulary), k=count)


def generate(
    http: httpx.Client,
    prompt: str | Sequence[int],
    new_tokens: int,
    tag: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One greedy answer of exactly ``new_tokens`` tokens from ``/generate``."""
    params: dict[str, Any] = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    if tag is not None:
        params["custom_params"] = {"tokencake": tag}
    body = {"text": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}
    response = http.post("/generate", json={**body, "sampling_params": params})
    assert response.status_code == 200, response.text
    return response.json()


def press(http: httpx.Client, seed: int, requests: int = 4) -> None:
    """Fills the pool with other requests, all at once."""
    prompts = [random_ids(seed + index, TURN_TOKENS) for index in range(requests)]
    with ThreadPoolExecutor(requests) as threads:
        list(threads.map(lambda ids: generate(http, ids, 4), prompts))


def eventually(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> Any:
    """The first true result of ``condition``."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        result = condition()
        if result:
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")
