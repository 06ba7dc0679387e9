"""One system on one cell, in this process: what it serves, and what came of it."""

import time
from typing import Any

import msgspec

from benchmarks.matrix import figures
from benchmarks.matrix.cells import Cell
from benchmarks.matrix.systems import LOWER_BOUND, all_systems
from benchmarks.matrix.work import check_work
from benchmarks.matrix.workloads import build, digest
from tokencake_sglang.replay.systems import System
from tokencake_sglang.timewarp.cost import CostModel
from tokencake_sglang.timewarp.hardware import load_hardware_profile
from tokencake_sglang.timewarp.models import load_model_profile


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """``figures`` reproduce; ``real_s`` and ``machine`` do not."""

    workload: str
    figures: dict[str, Any]
    real_s: float
    machine: dict[str, Any] = {}
    occupancy: Any = None
    gantt: Any = None


def execute(
    cell: Cell, system_name: str, *, flags: tuple[str, ...] = (), series: bool = False
) -> Outcome:
    """Serves the cell. A process can do this once, for SGLang publishes its settings in it.

    Args:
        flags: further server flags, beside the system's own.
        series: whether to return what plots over time need.

    Raises:
        UnequalWork: if fewer requests, other prompts or other outputs came than were asked for.
        Exception: whatever SGLang, the engine or a policy raises.
    """
    workload = build(cell.workload)
    started_s = time.perf_counter()
    if system_name == LOWER_BOUND:
        least = figures.of_bound(workload, cost_model(cell), cell)
        real_s = time.perf_counter() - started_s
        return Outcome(workload=digest(workload), figures=least, real_s=real_s)
    from tokencake_sglang.replay import tool_times
    from tokencake_sglang.replay.driver import Replay
    from tokencake_sglang.replay.figures import critical_first_tokens
    from tokencake_sglang.replay.figures import figures as figures_of
    from tokencake_sglang.replay.machine import machine_figures

    system = all_systems()[system_name]
    replay = Replay(
        tool_times.with_exact_hints(workload) if system.exact_hints else workload,
        _warp(cell, system, flags),
        priorities=system.priorities,
        declared_tokens=cell.workload.declared_tokens,
        occupancy_interval_s=cell.sample_s,
        tenants=system.tenants is not False,
        graphs=bool(system.graphs),
        lengths=system.lengths,
    )
    replay.run()
    real_s = time.perf_counter() - started_s
    found = figures_of(replay)
    check_work(workload, found)
    if cell.critical_apart:
        found["critical_first_token_s"] = msgspec.to_builtins(critical_first_tokens(replay))
    return Outcome(
        workload=digest(workload),
        figures=figures.compact(figures.agents_only(workload, found)),
        real_s=real_s,
        machine=msgspec.to_builtins(machine_figures(replay, real_s)),
        occupancy=figures.occupancy_series(replay) if series else None,
        gantt=figures.gantt_rows(replay) if series else None,
    )


def cost_model(cell: Cell) -> CostModel:
    scales = {
        "compute_scale": cell.compute_scale,
        "bandwidth_scale": cell.bandwidth_scale,
        "link_scale": cell.link_scale,
    }
    changed = {name: scale for name, scale in scales.items() if scale != 1.0}
    model, hardware = load_model_profile(cell.model), load_hardware_profile(cell.hardware)
    return CostModel(model, hardware, **changed)


def _warp(cell: Cell, system: System, flags: tuple[str, ...]) -> Any:
    from tokencake_sglang.timewarp.engine import TimeWarp

    return TimeWarp(
        cost_model(cell),
        pool_tokens=cell.pool_tokens,
        host_tokens=cell.host_tokens if system.host_tier else 0,
        page_size=cell.page_tokens,
        chunked_prefill_tokens=cell.chunked_prefill_tokens,
        max_running_requests=cell.max_running_requests,
        overlap=cell.overlap,
        flags=(*system.flags, *flags),
    )
