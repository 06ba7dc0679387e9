"""Results without runs: figures of the real shape with numbers chosen by the test."""

from typing import Any

import msgspec

from benchmarks.matrix.store import Record

VERSIONS = {"python": "3.11.0", "sglang": "0.5.23"}


def figures(mean_s: float = 100.0, **changes: Any) -> dict[str, Any]:
    first = {"mean": mean_s / 100, "p50": 0.5, "p95": 2.0, "p99": 3.0}
    made = {
        "applications": 24,
        "requests": 648,
        "steps": 20_000,
        "output_tokens": 155_136,
        "end_to_end_s": {"mean": mean_s, "p50": mean_s, "p95": 2 * mean_s, "max": 2 * mean_s},
        "makespan_s": 3 * mean_s,
        "first_token_s": {"first": first, "returning": first},
        "prefill_tokens": {"computed": 322_832, "needed": 276_960, "wasted": 45_872},
        "hits": {"prompt_tokens": 1000, "device_tokens": 700, "host_tokens": 200},
        "transfers": {
            "to_device_late_bytes": 10**9,
            "to_device_on_time_bytes": 2 * 10**9,
            "exposed_wait_s": 1.5,
            "to_device_busy_s": 3.0,
        },
        "retractions": 3,
        "decisions": {},
        "kv": {"used": 0.9, "effective": 0.7, "idle": 0.15, "dead": 0.05},
        "fairness": {"jain": 0.95, "worst_slowdown": 2.5},
    }
    return {**made, **changes}


def record(
    cell: str,
    system: str,
    mean_s: float = 100.0,
    *,
    stock: bool = False,
    error: str | None = None,
    **changes: Any,
) -> Record:
    workload = {"source": "code_writer", "applications": 24, "arrivals": "equal", "rate": 0.2}
    spec = {
        "id": cell,
        "workload": workload,
        "model": "qwen2.5-14b",
        "hardware": "a800",
        "pool_tokens": 48_800,
        "host_tokens": 488_000,
    }
    return Record(
        cell=cell,
        system=system,
        spec=spec,
        setting={"stock": stock},
        code="0123456789abcdef",
        versions=VERSIONS,
        workload="fedcba9876543210",
        figures=None if error else figures(mean_s, **changes),
        error=error,
    )


def cell_results(cell: str, *, scale: float = 1.0) -> list[Record]:
    """Two settings of SGLang's own, the extension, an oracle and the bound."""
    bound = record(cell, "lower-bound")
    limits = {"end_to_end_s": {"mean": 50 * scale}, "makespan_s": 150 * scale}
    return [
        record(cell, "stock", 400 * scale, stock=True),
        record(cell, "hicache-lpm", 200 * scale, stock=True),
        record(cell, "tokencake", 150 * scale),
        record(cell, "oracle-age", 100 * scale),
        msgspec.structs.replace(bound, figures=limits),
    ]
