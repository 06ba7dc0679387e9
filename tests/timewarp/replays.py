"""Whole replays that the tests run in forked processes; each returns what is to be judged."""

from typing import Any

import msgspec

from benchmarks.workloads import chat, fan_out, tokencake_dags
from tests.timewarp.runs import time_warp
from tokencake_sglang.engine.scheduler_hooks import PLANNER
from tokencake_sglang.replay.arrivals import (
    equal_spacing,
    lanes,
    merge,
    replicate,
    with_tenants,
)
from tokencake_sglang.replay.bounds import bounds
from tokencake_sglang.replay.claims import Claim
from tokencake_sglang.replay.declarations import declared_graphs
from tokencake_sglang.replay.driver import Replay
from tokencake_sglang.replay.figures import figures
from tokencake_sglang.replay.gantt import gantt
from tokencake_sglang.replay.machine import machine_figures
from tokencake_sglang.replay.occupancy import Occupancy
from tokencake_sglang.replay.systems import SYSTEMS

POOL_TOKENS = {"code_writer": 16_384, "deep_research": 32_768}


def agents_and_chat() -> dict[str, Any]:
    """Two applications of 27 requests each, and six untagged ones beside them."""
    agents = equal_spacing(replicate(tokencake_dags.load("code_writer"), 2), 1.0)
    untagged = chat.generate(rate=0.2, duration_s=30.0, seed=0)
    workload = merge("both", [agents, untagged])
    replay = Replay(workload, time_warp(pool_tokens=POOL_TOKENS["code_writer"]))
    replay.run()
    chatting = [request.request_id for request in workload.requests if not request.application]
    waits_s = {
        name: request.first_token_s - request.queued_s
        for name, request in replay.warp.requests.items()
        if request.first_token_s is not None
    }
    return {"figures": figures(replay), "chat_s": [waits_s[name] for name in chatting]}


def returning_in_a_lane() -> dict[str, Any]:
    """Two applications one after the other: the requests that returned, and each one's own."""
    workload = lanes(replicate(tokencake_dags.load("code_writer"), 2), 1)
    replay = Replay(workload, time_warp(pool_tokens=POOL_TOKENS["code_writer"]))
    replay.run()
    own = {
        request.request_id: [
            name
            for name in request.wait_for
            if workload.by_id[name].application == request.application
        ]
        for request in workload.requests
    }
    waited = [request.request_id for request in workload.requests if request.wait_for]
    return {"returning": replay.returning, "own": own, "waited": waited}


def matches_anew(system: str) -> int:
    """A replay in which every match of a claim is looked up a second time, from nothing.

    Returns how many of them had not been looked up the first time.
    """
    match, kept = Occupancy._match, 0

    def checked(occupancy: Any, claim: Claim) -> tuple[int, int]:
        nonlocal kept
        found = match(occupancy, claim)
        before, occupancy._whole = occupancy._whole, {}
        anew = match(occupancy, claim)
        occupancy._whole = before
        assert found == anew, (claim, found, anew)
        kept += (claim.request_id, claim.tokens) in before
        request = occupancy._warp.requests.get(claim.request_id)
        if request is not None:
            tokens = request.prompt + request.output
            assert found == occupancy._warp.cached_prefix(tokens, claim.tokens)
        return found

    Occupancy._match = checked  # type: ignore[method-assign]  # in a process of its own
    code_writers(system, 3)
    return kept


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


def tenants_and_the_pool() -> list[tuple[int, int]]:
    """In each look at the pool: what two tenants' running requests held, and what ran at all."""
    pool_tokens = POOL_TOKENS["code_writer"]
    workload = equal_spacing(replicate(tokencake_dags.load("code_writer"), 2), 1.0)
    warp = time_warp(
        pool_tokens=pool_tokens,
        host_tokens=10 * pool_tokens,
        flags=SYSTEMS["hicache"].flags,
    )
    replay = Replay(with_tenants(workload, ["a", "b"]), warp)
    replay.run()
    assert replay.holdings is not None
    running = {sample.time_s: sample.running for sample in replay.occupancy.samples}
    return [
        (sum(sample.tokens.values()), running[sample.time_s])
        for sample in replay.holdings.samples
        if sample.time_s in running
    ]


def what_small_declares(declares: bool, flags: tuple[str, ...]) -> dict[str, float | None]:
    """Of an application of four agents in a row: seconds that the server takes to be left from the
    turn of the ``second`` on, and that the ``first`` and all of them take ``alone``; and the ``output``
    tokens that it declared."""
    workload = fan_out.load("small")
    warp = time_warp(pool_tokens=16_384, host_tokens=65_536, flags=("--enable-tokencake", *flags))
    replay = Replay(workload, warp, graphs=declares, lengths=0.0 if declares else None)
    planner = getattr(warp.scheduler, PLANNER)
    found: dict[str, float | None] = {}

    def look(_: Any) -> None:
        if (told := planner.table.declared("small")) is not None:
            found["output"] = told.expected_output_tokens
        for agent in planner.table.of_application("small"):
            if agent.rids:
                found.setdefault(agent.key.agent, planner.applications.turns.path_of(agent)[1])

    warp.observers.append(look)
    declared = declared_graphs(workload, warp.cost)["small"]
    times_s = {node.name: node.expected_s or 0.0 for node in declared}
    replay.run()
    return {
        "second": found["branch_1_1"],
        "first": times_s["planner"],
        "alone": sum(times_s.values()),
        "output": found.get("output"),
    }
