"""A run's or a bound's figures as result files have them."""

import math
from typing import Any

import msgspec

from benchmarks.matrix.cells import Cell
from tokencake_sglang.replay.bounds import bounds
from tokencake_sglang.replay.quantiles import spread_and_max
from tokencake_sglang.replay.workload import Workload
from tokencake_sglang.timewarp.cost import CostModel

DECIMALS = 6
"""Results are rounded to microseconds, so that no machine's mathematical library shows."""

SERIES_POINTS = 160

STATES = ("running", "soon", "idle", "dead")
"""Of device memory, from the bottom of a plot up."""


def agents_only(workload: Workload, figures: dict[str, Any]) -> dict[str, Any]:
    """Beside untagged traffic: ``end_to_end_s`` of the applications, ``background_s`` of the rest.

    Unchanged for a workload of applications alone.
    """
    agents = {request.application for request in workload.requests} - {None}
    times_s = figures["application_s"]
    if len(agents) == len(times_s):
        return figures
    ours = {name: seconds for name, seconds in times_s.items() if name in agents}
    others = [seconds for name, seconds in times_s.items() if name not in agents]
    return {
        **figures,
        "applications": len(ours),
        "application_s": ours,
        "end_to_end_s": msgspec.to_builtins(spread_and_max(ours.values())),
        "background_s": msgspec.to_builtins(spread_and_max(others)),
    }


def of_bound(workload: Workload, cost: CostModel, cell: Cell) -> dict[str, Any]:
    """What no server can be better than, where a run's figures have it."""
    agents = {request.application for request in workload.requests if request.application}
    least = bounds(
        workload,
        cost,
        pool_tokens=cell.pool_tokens,
        max_running_requests=cell.max_running_requests,
        of=agents or None,
    )
    end_to_end_s = {"mean": least.end_to_end_mean_s, "p95": least.end_to_end_p95_s}
    return rounded({"end_to_end_s": end_to_end_s, "makespan_s": least.makespan_s})


def compact(figures: dict[str, Any]) -> dict[str, Any]:
    """Rounded; applications' times in order of name, in tenths, without the names."""
    times_s = figures["application_s"]
    short = [round(times_s[name], 1) for name in sorted(times_s)]
    return {**rounded(figures), "application_s": short}


def rounded(value: Any) -> Any:
    """The same with every float rounded to microseconds."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return round(value, DECIMALS) if isinstance(value, float) else value


def occupancy_series(replay: Any) -> dict[str, list[float]]:
    """Shares of the pool by state over time, at most ``SERIES_POINTS`` samples."""
    samples = replay.occupancy.samples
    samples = samples[:: max(1, math.ceil(len(samples) / SERIES_POINTS))]
    whole = replay.occupancy.pool_tokens
    return {
        "time_s": [round(sample.time_s, 1) for sample in samples],
        **{s: [round(getattr(sample, s) / whole, 3) for sample in samples] for s in STATES},
    }


def gantt_rows(replay: Any) -> list[dict[str, Any]]:
    """The requests of the application in the middle of the file, the same for every system."""
    from tokencake_sglang.replay.gantt import gantt

    names = list(replay.workload.applications)
    rows = msgspec.to_builtins(gantt(replay, names[len(names) // 2]))
    for row in rows:
        del row["request_id"]
    return [
        {key: round(v, 2) if isinstance(v, float) else v for key, v in row.items()} for row in rows
    ]
