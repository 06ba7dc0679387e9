"""What a run is judged by."""

import statistics
from typing import Any

from tokencake_sglang.replay.driver import Replay


def figures(replay: Replay) -> dict[str, Any]:
    """What a run is judged by; seconds are virtual, tokens are counts."""
    loop, warp = replay.loop, replay.warp
    end_to_end = [loop.ended_s[name] - loop.started_s[name] for name in loop.ended_s]
    first = [r.first_token_s - r.queued_s for r in warp.requests.values() if r.first_token_s]
    returning = [
        r.first_token_s - r.queued_s
        for r in warp.requests.values()
        if r.first_token_s and r.rid in replay.returning
    ]
    prompt = sum(len(r.prompt) for r in warp.requests.values())
    return {
        "applications": len(end_to_end),
        "end_to_end_mean_s": statistics.fmean(end_to_end),
        "end_to_end_p50_s": _quantile(end_to_end, 0.5),
        "end_to_end_p95_s": _quantile(end_to_end, 0.95),
        "makespan_s": max(loop.ended_s.values()),
        "first_token_p50_s": _quantile(first, 0.5),
        "first_token_p95_s": _quantile(first, 0.95),
        "first_token_returning_p50_s": _quantile(returning, 0.5),
        "first_token_returning_p95_s": _quantile(returning, 0.95),
        "prompt_tokens": prompt,
        "prefill_tokens": warp.totals.prefill_tokens,
        "device_hit_tokens": sum(r.device_hit_tokens for r in warp.requests.values()),
        "host_hit_tokens": sum(r.host_hit_tokens for r in warp.requests.values()),
        "output_tokens": warp.totals.output_tokens,
        "retractions": warp.totals.retractions,
        "steps": warp.totals.steps,
        "load_wait_s": warp.totals.load_wait_s,
    }


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else 0.0
