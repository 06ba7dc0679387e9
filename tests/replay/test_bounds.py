"""Lower bounds against sums by hand."""

import pytest

from tests.replay.builders import request, workload
from tokencake_sglang.replay.bounds import bounds
from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.critical_path import after_end_s, alone_s
from tokencake_sglang.replay.least_work import least_work
from tokencake_sglang.replay.machine_work import machine_work
from tokencake_sglang.replay.one_machine import (
    Job,
    Piece,
    drained_s,
    makespan_s,
    shortest_first_mean_s,
)
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import ToolCall, Workload
from tokencake_sglang.timewarp.cost import CostModel, Work
from tokencake_sglang.timewarp.hardware import HardwareProfile
from tokencake_sglang.timewarp.models import ModelProfile

# A second a token in the linear layers, a tenth of a second a token of KV read, ten seconds for
# the weights and one of overhead a forward.
COST = CostModel(
    ModelProfile(
        name="by hand",
        layers=1,
        kv_bytes_per_token=1,
        layer_flops_per_token=1.0,
        attention_flops_per_pair=0.0,
        layer_weight_bytes=100.0,
        head_flops=0.0,
        head_weight_bytes=0.0,
    ),
    HardwareProfile(
        name="by hand",
        peak_flops=1.0,
        compute_efficiency=1.0,
        memory_bytes_per_s=10.0,
        memory_efficiency=1.0,
        memory_bytes=1e9,
        host_to_device_bytes_per_s=1.0,
        device_to_host_bytes_per_s=1.0,
        copy_latency_s=0.0,
        step_overhead_s=1.0,
    ),
)


def test_the_hand_made_machine() -> None:
    assert COST.forward_s([Work(30, 0)]) == 31.0  # arithmetic
    assert COST.forward_s([Work(1, 49)]) == 10.0 + 5.0 + 1.0  # traffic


def test_a_request_alone_takes_one_prefill_and_its_decode_steps() -> None:
    run = workload(request("a", prompt=(Span("p", 0, 40),), output=(Span("o", 0, 3),)))
    decode_s = sum(COST.forward_s([Work(1, 40 + k)]) for k in range(2))
    assert alone_s(run.requests[0], least_work(run), COST) == pytest.approx(
        41.0 + decode_s, abs=0.1
    )
    assert alone_s(run.requests[0], least_work(run), COST) <= 41.0 + decode_s


def test_what_a_predecessor_or_a_sibling_has_need_not_be_computed() -> None:
    run = workload(
        request("a", prompt=(Span("p", 0, 40),), output=(Span("a", 0, 5),)),
        request("b", after="a", prompt=(Span("p", 0, 40), Span("a", 0, 5), Span("b", 0, 7))),
        request("c", after="a", prompt=(Span("p", 0, 40), Span("c", 0, 9))),
    )
    new = {name: work.new_tokens for name, work in least_work(run).requests.items()}
    # a: all that follow wait for it, so nobody can have computed its prompt; b, c: their own tails.
    assert new == {"a": 40, "b": 7, "c": 9}
    twins = workload(request("a"), request("b"))
    assert {w.new_tokens for w in least_work(twins).requests.values()} == {1}
    assert least_work(twins).prefill == {"app": ((0, 10, ("a", "b")),)}


def test_prefixes_of_several_applications_are_nobodys_work() -> None:
    shared, own = Span("system", 0, 30), Span("own", 0, 4)
    run = workload(
        request("a", application="x", prompt=(shared, own)),
        request("b", application="y", prompt=(shared,)),
    )
    assert least_work(run).prefill == {"x": ((30, 4, ("a",)),), "y": ()}


def test_memory_is_shared_by_as_many_as_can_run_at_once() -> None:
    prompt = (Span("p", 0, 12),)
    run = workload(
        request("a", prompt=prompt),
        request("b", after="a", prompt=prompt),
        request("c", after="a", prompt=prompt),
        request("d", after="b c", prompt=(*prompt, Span("d", 0, 5))),
    )
    held = {name: work.held_tokens for name, work in least_work(run).requests.items()}
    # b and c can run at once, nobody else beside anybody: the prefix is held once for two.
    assert held == {"a": 6.0, "b": 6.0, "c": 6.0, "d": 11.0}


def pieces(run: Workload, **limits: int | bool) -> tuple[Piece, ...]:
    least = least_work(run)
    alone = schedule(run, lambda of: alone_s(of, least, COST))
    limits = {"pool_tokens": 100, "max_running_requests": 256, **limits}
    return machine_work(run, least, COST, alone, **limits)["app"]


def work_s(run: Workload, **limits: int | bool) -> float:
    return sum(piece.work_s for piece in pieces(run, **limits))


def test_work_has_prefill_context_and_a_share_of_the_steps() -> None:
    run = workload(request("a", prompt=(Span("p", 0, 40),), output=(Span("o", 0, 3),)))
    kv_tokens = 41 + 42
    assert work_s(run) == pytest.approx(40.0 + kv_tokens / 10 + 11.0 * kv_tokens / 100)
    assert work_s(run, separate_forwards=False) == 40.0


def test_few_running_requests_share_less() -> None:
    run = workload(request("a", prompt=(Span("p", 0, 40),), output=(Span("o", 0, 3),)))
    few = work_s(run, pool_tokens=10**6, max_running_requests=1)
    assert few == pytest.approx(40.0 + 8.3 + 2 * 11.0)


def test_work_comes_after_what_leads_to_it_and_before_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokencake_sglang.replay.machine_work.DECODE_STEPS", 2)
    run = workload(
        request(
            "a",
            prompt=(Span("p", 0, 40),),
            output=(Span("o", 0, 4),),
            arrival_s=7.0,
            tool_s=100.0,
        )
    )
    step_s = [COST.forward_s([Work(1, 40 + k)]) for k in range(3)]
    assert [(piece.head_s, piece.tail_s) for piece in pieces(run)] == [
        (7.0, pytest.approx(sum(step_s) + 100.0)),
        (7.0 + 41.0, pytest.approx(step_s[2] + 100.0)),
        (pytest.approx(7.0 + 41.0 + sum(step_s[:2]), abs=0.1), 100.0),
    ]


def test_a_stretch_of_several_requests_is_between_the_first_and_all_that_follows_any() -> None:
    twin = {"prompt": (Span("p", 0, 40),), "output": (Span("o", 0, 1),)}
    run = workload(
        request("a", arrival_s=5.0, **twin), request("b", arrival_s=9.0, tool_s=30.0, **twin)
    )
    assert pieces(run) == (Piece(5.0, 40.0, 30.0),)


def test_what_follows_a_request_is_the_longest_of_tools_sub_agents_and_successors() -> None:
    run = workload(
        request("a", call=ToolCall(tool="agent", wait_s=3.0, until=("x2",))),
        request("b", after="a", delay_s=0.5),
        request("x1", spawned_by="a", delay_s=2.0),
        request("x2", after="x1", tool_s=5.0),
        request("late", spawned_by="x1", delay_s=100.0),
    )
    alone = {name: 10.0 for name in run.by_id}
    b = 0.5 + 10.0
    x2 = 5.0 + 3.0 + b
    x1 = max(10.0 + x2, 100.0 + 10.0)
    assert after_end_s(run, alone) == {
        "a": 2.0 + 10.0 + x1,
        "b": 0.0,
        "x1": x1,
        "x2": x2,
        "late": 0.0,
    }


def test_a_path_is_what_leads_to_a_request_and_what_follows_it() -> None:
    run = workload(
        request("a", tool_s=4.0), request("b", after="a", tool_s=2.0), request("c", after="b")
    )
    alone = schedule(run, lambda of: 10.0)
    after = after_end_s(run, dict.fromkeys(run.by_id, 10.0))
    for name, end_s in alone.finished_s.items():
        assert end_s + after[name] == alone.makespan_s


def job(release_s: float, work_s: float) -> Job:
    return Job(release_s, work_s, (Piece(release_s, work_s, 0.0),))


def test_the_makespan_is_what_is_left_to_do_after_some_head() -> None:
    assert makespan_s([Piece(0.0, 5.0, 0.0), Piece(1.0, 3.0, 0.0)]) == 8.0
    assert makespan_s([Piece(0.0, 5.0, 0.0), Piece(20.0, 3.0, 0.0)]) == 23.0
    assert makespan_s([Piece(0.0, 5.0, 0.0), Piece(1.0, 3.0, 6.0)]) == 10.0
    assert makespan_s([]) == 0.0


def test_the_mean_is_that_of_shortest_remaining_time_first() -> None:
    # a runs 0-1, gives way to b for 1-3, then 3-7: 7 and 2 seconds.
    assert shortest_first_mean_s([job(0.0, 5.0), job(1.0, 2.0)]) == 4.5
    # b is longer than what is left of a: 5 and 4 + 6 seconds.
    assert shortest_first_mean_s([job(0.0, 5.0), job(1.0, 6.0)]) == 7.5
    assert shortest_first_mean_s([job(3.0, 2.0), job(9.0, 2.0)]) == 2.0
    assert shortest_first_mean_s([]) == 0.0


def test_the_quantile_leaves_out_the_largest_jobs() -> None:
    jobs = [*(job(float(i), 10.0) for i in range(20)), job(0.0, 1000.0)]
    # Place 19 of 21: twenty jobs of 10 s, the last released 19 s after the first.
    assert drained_s(jobs, 0.95) == 200.0 - 19.0
    assert drained_s([job(0.0, 1.0), job(50.0, 1.0)], 0.95) == 0.0
    assert drained_s([], 0.95) == 0.0


def test_the_quantile_has_the_least_head_and_the_least_tail() -> None:
    jobs = [Job(0.0, 9.0, (Piece(2.0, 3.0, 7.0),)), Job(0.0, 9.0, (Piece(4.0, 3.0, 5.0),))]
    assert drained_s(jobs, 0.95) == 2.0 + 6.0 + 5.0
    # Jobs without work of their own may have ended whatever the machine does.
    assert drained_s([*jobs, *(Job(0.0, 1.0, ()) for _ in range(60))], 0.95) == 0.0


def many(count: int, **fields: object) -> list:
    return [
        request(f"r{i}", application=f"app{i}", prompt=(Span(f"p{i}", 0, 40),), **fields)
        for i in range(count)
    ]


def test_the_larger_of_both_bounds_counts() -> None:
    crowded = bounds(workload(*many(20)), COST, pool_tokens=1000)
    assert crowded.makespan_s == crowded.parts.work_makespan_s > 800.0
    assert crowded.end_to_end_mean_s > crowded.parts.work_mean_s
    assert crowded.end_to_end_mean_s == crowded.parts.busy_dates_mean_s
    assert crowded.parts.work_mean_s > crowded.parts.critical_path_mean_s
    patient = bounds(workload(*many(20, tool_s=1e5)), COST, pool_tokens=1000)
    assert patient.application_s["app7"] == patient.parts.critical_path_mean_s > 1e5
    queued_s = crowded.parts.busy_dates_mean_s - crowded.parts.critical_path_mean_s
    assert patient.end_to_end_mean_s == pytest.approx(1e5 + queued_s + 101.8, abs=1.0)
    alone = bounds(workload(*many(1, tool_s=1e5)), COST, pool_tokens=1000)
    assert alone.end_to_end_mean_s == alone.parts.critical_path_mean_s > 1e5
    assert alone.end_to_end_p95_s == alone.parts.critical_path_p95_s


def test_work_says_nothing_about_the_time_of_an_application_that_waits_for_another() -> None:
    first, second = many(2)
    later = request("r2", after="r1", application="app2", prompt=(Span("p2", 0, 40),))
    parts = bounds(workload(first, second, later), COST, pool_tokens=1000).parts
    assert (parts.work_mean_s, parts.work_p95_s, parts.busy_dates_mean_s) == (0.0, 0.0, 0.0)
    assert parts.work_makespan_s > 120.0


def test_of_some_applications_only_their_times_and_their_work_count() -> None:
    run = workload(*many(4), request("chat", application=None, prompt=(Span("c", 0, 500),)))
    whole, agents = (
        bounds(run, COST, pool_tokens=1000, of=of) for of in (None, [f"app{i}" for i in range(4)])
    )
    alone = bounds(workload(*many(4)), COST, pool_tokens=1000)
    assert agents.end_to_end_mean_s == alone.end_to_end_mean_s < whole.end_to_end_mean_s
    assert agents.makespan_s == whole.makespan_s > 500.0
