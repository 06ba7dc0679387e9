"""Whole replays that the tests run in forked processes; each returns what is to be judged."""

from typing import Any

import msgspec

from benchmarks.workloads import tokencake_dags
from tests.timewarp.runs import time_warp
from tokencake_sglang.replay.arrivals import equal_spacing, replicate
from tokencake_sglang.replay.bounds import bounds
from tokencake_sglang.replay.driver import Replay
from tokencake_sglang.replay.figures import figures
from tokencake_sglang.replay.gantt import gantt
from tokencake_sglang.replay.machine import machine_figures
from tokencake_sglang.replay.systems import SYSTEMS

POOL_TOKENS = {"code_writer": 16_384, "deep_research": 32_768}


def code_writers(
    system: str,
    applications: int = 2,
    dag: str = "code_writer",
    occupancy_interval_s: float = 1.0,
    declared_tokens: int | None = None,
) -> dict[str, Any]:
    """Applications that arrive a second apart and do not fit together; of 27 or 32 requests."""
    pool_tokens = POOL_TOKENS[dag]
    workload = equal_spacing(replicate(tokencake_dags.load(dag), applications), 1.0)
    chosen = SYSTEMS[system]
    warp = time_warp(
        pool_tokens=pool_tokens,
        host_tokens=10 * pool_tokens if chosen.host_tier else 0,
        flags=chosen.flags,
    )
    replay = Replay(
        workload,
        warp,
        priorities=chosen.priorities,
        declared_tokens=declared_tokens,
        occupancy_interval_s=occupancy_interval_s,
    )
    replay.stopwatch.watch_planner()
    replay.run()
    return {
        "figures": figures(replay),
        "samples": [msgspec.to_builtins(sample) for sample in replay.occupancy.samples],
        "gantt": [msgspec.to_builtins(row) for row in gantt(replay)],
        "machine": msgspec.to_builtins(machine_figures(replay, 1.0)),
        "bounds": msgspec.to_builtins(bounds(workload, warp.cost, pool_tokens=pool_tokens)),
    }
