"""What the tests run in forked processes; each returns what is to be judged."""

from collections import deque
from dataclasses import asdict
from typing import Any

import msgspec
import torch

from benchmarks.workloads import tokencake_dags
from tokencake_sglang.replay.arrivals import equal_spacing, replicate
from tokencake_sglang.timewarp.cost import CostModel
from tokencake_sglang.timewarp.engine import Request, TimeWarp
from tokencake_sglang.timewarp.hardware import load_hardware_profile
from tokencake_sglang.timewarp.models import load_model_profile
from tokencake_sglang.timewarp.ranks import Rank
from tokencake_sglang.timewarp.requests import END_TOKEN


def time_warp(**options: Any) -> TimeWarp:
    cost = CostModel(load_model_profile("qwen2.5-14b"), load_hardware_profile("a800"))
    return TimeWarp(cost, **options)


def prompt(number: int, tokens: int) -> list[int]:
    """Differs from every other from the first token on."""
    return [number + 1] + [7] * (tokens - 1)


def batch(
    overlap: bool, host_tokens: int, requests: int, running: int, pool_tokens: int
) -> dict[str, float]:
    """Equal requests, all there at the start, ``running`` at a time."""
    warp = time_warp(
        pool_tokens=pool_tokens,
        host_tokens=host_tokens,
        overlap=overlap,
        max_running_requests=running,
    )
    for number in range(requests):
        warp.submit(Request(f"r{number}", prompt(number, 512), [5] * 40))
    warp.run()
    return {
        "makespan_s": warp.clock.now_s,
        "forward_s": warp.totals.forward_s,
        "steps": warp.totals.steps,
        "overhead_s": warp.cost.hardware.step_overhead_s,
    }


def ends(overlap: bool) -> list[tuple[float, float]]:
    """For requests of different lengths: when each ended, and when what is launched then ends."""
    warp = time_warp(pool_tokens=8192, overlap=overlap)
    seen = []

    def note(request: Request) -> None:
        assert request.finished_s == warp.clock.now_s
        seen.append((warp.clock.now_s, warp._forward.stream.free_s))

    for number in range(4):
        output = [5] * (10 * (number + 1))
        warp.submit(Request(f"r{number}", prompt(number, 64), output, on_finish=note))
    warp.run()
    return seen


def code_writer(rank: Rank, applications: int, pool_tokens: int, overlap: bool) -> dict[str, Any]:
    """The TokenCake authors' application on one rank: its decisions, and what came of the run."""
    from tokencake_sglang.engine.scheduler_hooks import planner_of
    from tokencake_sglang.replay.driver import Replay

    warp = time_warp(
        pool_tokens=pool_tokens,
        host_tokens=10 * pool_tokens,
        overlap=overlap,
        flags=("--enable-tokencake",),
        rank=rank,
    )
    log = planner_of(warp.scheduler).log
    log.recent = deque()  # all of them, not the last few
    if rank.number == 0:
        workload = tokencake_dags.load("code_writer")
        Replay(equal_spacing(replicate(workload, applications), 1.0), warp).run()
    else:
        warp.run()
    assert warp.transfers is not None
    return {
        "decisions": [msgspec.structs.asdict(decision) for decision in log.recent],
        "totals": asdict(warp.totals),
        "transfers": warp.transfers.figures(),
        "makespan_s": warp.clock.now_s,
        "finished_s": {rid: request.finished_s for rid, request in warp.requests.items()},
        "ranks": torch.distributed.get_world_size(),
    }


def refusals(outputs: list[list[int]], limit: int) -> list[str]:
    """What requests that declare ``limit`` are told whose outputs end otherwise; none is queued."""
    warp = time_warp(pool_tokens=8192)
    said = []
    for number, output in enumerate(outputs):
        try:
            warp.submit(Request(f"r{number}", prompt(number, 64), output, limit=limit))
        except ValueError as error:
            said.append(str(error))
    warp.run()
    assert not warp.requests and warp.totals.steps == 0
    return said


def declared(output_tokens: int, limit: int) -> tuple[int, int]:
    """Tokens generated, and steps, of a request that ends by itself before its limit."""
    warp = time_warp(pool_tokens=8192, overlap=False)
    output = [5] * (output_tokens - 1) + [END_TOKEN]
    warp.submit(Request("r", prompt(0, 64), output, limit=limit))
    warp.run()
    return warp.totals.output_tokens, warp.totals.steps
