"""The published formulas, one function each. Pure; tokens where the paper has blocks."""

import math
from collections.abc import Mapping, Sequence

ALPHA = 0.5
"""Weight of the caller's estimate in Eq. 1, and of a new sample in the average."""

UNKNOWN_CALL_S = 1.0
UPLOAD_BUFFER_S = 0.1
RESERVATION_STEPS = 5
UPDATE_STEPS = 500
CRITICAL_RATIO = 0.75
RESERVE_MIN, RESERVE_MAX, RESERVE_STEP = 0.05, 0.30, 0.05
USAGE_LOW, USAGE_HIGH = 0.40, 0.75
W_STATIC = 1.0
THROUGHPUT_PROBE_TOKENS = 2048
UNPROFILED_TOKENS_PER_S = 5000.0


class CallTimes:
    """Eq. 1: an estimate per tool until it has run once, then a moving average."""

    def __init__(self) -> None:
        self.cold_start_s: dict[str, float] = {}
        self._seen_s: dict[str, float] = {}

    def predict_s(self, tool: str, requested_s: float | None) -> float:
        seen_s = self._seen_s.get(tool)
        if seen_s is None:
            if requested_s is not None:
                return requested_s
            return self.cold_start_s.get(tool, UNKNOWN_CALL_S)
        return seen_s if requested_s is None else ALPHA * requested_s + (1 - ALPHA) * seen_s

    def learn(self, tool: str, took_s: float) -> None:
        seen_s = self._seen_s.get(tool, took_s)
        self._seen_s[tool] = ALPHA * took_s + (1 - ALPHA) * seen_s


def fitting(
    call_s: float, transfer_s: float, tokens_per_s: float, waiting: Sequence[int]
) -> int | None:
    """Algorithm 1: the waiting request (its tokens) that fits best into the call's time.

    None: the context stays, for the call is too short or nothing that waits fits.
    """
    if call_s <= transfer_s:
        return None
    capacity = (call_s - transfer_s) * tokens_per_s
    return max((tokens for tokens in waiting if tokens <= capacity), default=None)


def static_priority(depth: int, out_degree: int) -> float:
    return W_STATIC * depth * out_degree


def dynamic_priority(wait_s: float, tokens: int) -> float:
    return wait_s * math.log(tokens / wait_s) if wait_s > 0 and tokens > 0 else 0.0


def reserve_ratio(ratio: float, usage: float) -> float:
    """Algorithm 2, first half."""
    if usage >= USAGE_HIGH:
        ratio += RESERVE_STEP
    elif usage <= USAGE_LOW:
        ratio -= RESERVE_STEP
    return min(RESERVE_MAX, max(RESERVE_MIN, ratio))


def reservations(
    scores: Mapping[str, float], used_tokens: Mapping[str, float], pool_tokens: int, ratio: float
) -> dict[str, float]:
    """Algorithm 2, second half, for the critical types: tokens of each one's reservation."""
    count = max(1, int(len(scores) * CRITICAL_RATIO))
    critical = sorted(scores, key=lambda kind: (-scores[kind], kind))[:count]
    total_score = sum(scores[kind] for kind in critical)
    reserve = pool_tokens * ratio
    found = {}
    for kind in critical:
        by_memory = used_tokens.get(kind, 0.0) / pool_tokens
        by_priority = scores[kind] / total_score if total_score > 0 else 0.0
        found[kind] = max(0.0, reserve * (by_memory + by_priority) / 2)
    return found
