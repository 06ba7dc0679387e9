"""InferCept's units of waste: memory held for nothing, in token·seconds (arXiv 2402.01869). Pure.

The formulas are those of the released code (WukLab/InferCept, scheduler_v2.py, discard_waste).
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds of a forward pass over x tokens, f(x) = a·x + c, and where it starts to grow."""

    a: float = 0.0279e-3
    c: float = 15.4e-3
    saturation: int = 384

    @classmethod
    def fitted(cls, prefill_s: Callable[[int, int], float]) -> "Profile":
        a = (prefill_s(2048, 0) - prefill_s(1024, 0)) / 1024
        c = max(prefill_s(1024, 0) - 1024 * a, 0.0)
        return cls(a, c, max(round((prefill_s(1, 0) - c) / a), 1))


def preserve_waste(tokens: int, remaining_s: float) -> float:
    """W_preserve = T·C."""
    return max(remaining_s, 0.0) * tokens


def discard_waste(tokens: int, running: int, running_tokens: int, profile: Profile) -> float:
    """W_discard: what recomputing ``tokens`` in chunks beside ``running`` requests holds idle.

    Chunks of h = saturation − running tokens: the k-th holds k·h for an iteration at saturation,
    and everybody's KV for the time that the chunk adds to it; the rest comes with the last.
    """
    chunk = max(profile.saturation - running, 1)
    chunks = max(-(-tokens // chunk) - 1, 0)
    saturated_s = profile.a * profile.saturation + profile.c
    waste = saturated_s * chunks * (chunks + 1) / 2 * chunk
    waste += profile.a * chunk * chunks * running_tokens
    last = tokens % chunk
    return waste + profile.a * last * (running_tokens + last)
