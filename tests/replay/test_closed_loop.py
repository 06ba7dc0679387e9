from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.replay.builders import request, workload
from tokencake_sglang.replay.closed_loop import CallReturned, ClosedLoop, Dispatch, schedule
from tokencake_sglang.replay.workload import Request, ToolCall


def names(events: list[Dispatch | CallReturned]) -> list[tuple[float, str, str]]:
    return [(e.time_s, type(e).__name__, e.request.request_id) for e in events]


def test_a_successor_is_dispatched_when_the_call_has_returned_however_late_the_end() -> None:
    loop = ClosedLoop(workload(request("a", tool_s=2.0), request("b", after="a", delay_s=0.5)))
    assert names(list(loop.pop_due(0.0))) == [(0.0, "Dispatch", "a")]
    assert loop.next_event_s is None
    loop.finish("a", 7.0)
    assert list(loop.pop_due(8.9)) == []
    assert names(list(loop.pop_due(100.0))) == [(9.0, "CallReturned", "a"), (9.5, "Dispatch", "b")]
    assert not loop.done
    loop.finish("b", 101.0)
    assert loop.done
    assert (loop.started_s, loop.ended_s) == ({"app": 0.0}, {"app": 101.0})


def test_a_join_waits_for_the_slowest_call_not_for_the_sum() -> None:
    run = schedule(
        workload(request("a", tool_s=5.0), request("b", tool_s=1.0), request("c", after="a b")),
        lambda r: {"a": 1.0, "b": 3.0, "c": 0.0}[r.request_id],
    )
    assert run.dispatched_s["c"] == 6.0


def test_a_call_after_the_last_request_belongs_to_the_application() -> None:
    run = schedule(workload(request("a", tool_s=5.5)), lambda r: 1.0)
    assert run.application_s == {"app": 6.5}


def test_a_parent_sleeps_until_its_last_subagent_is_done() -> None:
    parent = request("p0", call=ToolCall(tool="subagent", wait_s=1.0, until=("x1", "y0")))
    run = schedule(
        workload(
            parent,
            request("p1", after="p0"),
            request("x0", spawned_by="p0", delay_s=0.5, tool_s=2.0),
            request("x1", after="x0"),
            request("y0", spawned_by="p0", delay_s=0.5),
        ),
        lambda r: {"y0": 4.0}.get(r.request_id, 10.0),
    )
    assert run.dispatched_s["x0"] == run.dispatched_s["y0"] == 10.5
    assert run.dispatched_s["x1"] == 22.5
    assert run.dispatched_s["p1"] == 33.5


def test_an_untagged_request_starts_and_ends_by_itself() -> None:
    loop = ClosedLoop(workload(request("chat", application=None, arrival_s=3.0)))
    assert loop.next_event_s == 3.0
    list(loop.pop_due(3.0))
    loop.finish("chat", 4.0)
    assert (loop.started_s, loop.ended_s) == ({"chat": 3.0}, {"chat": 4.0})


def test_only_a_running_request_can_finish() -> None:
    loop = ClosedLoop(workload(request("a")))
    with pytest.raises(ValueError, match="'a' is not running"):
        loop.finish("a", 0.0)
    list(loop.pop_due(0.0))
    loop.finish("a", 1.0)
    with pytest.raises(ValueError, match="'a' is not running"):
        loop.finish("a", 1.0)


def test_what_runs_and_is_open_at_once_is_counted() -> None:
    run = schedule(
        workload(
            *(request(f"{i}", application=f"app{i}", arrival_s=float(i)) for i in range(4)),
        ),
        lambda r: 2.0,
    )
    assert (run.most_running, run.most_open, run.makespan_s) == (2, 2, 5.0)


@st.composite
def graphs(draw: st.DrawFn) -> list[Request]:
    requests = []
    for index in range(draw(st.integers(1, 8))):
        before = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        requests.append(
            request(
                str(index),
                after=" ".join(map(str, sorted(before))),
                tool_s=draw(st.none() | st.integers(0, 5).map(float)),
                delay_s=float(draw(st.integers(0, 3))),
            )
        )
    return requests


@given(graphs())
def test_times_are_those_of_the_longest_path(requests: list[Request]) -> None:
    service = {r.request_id: float(sum(map(ord, r.request_id)) % 4) for r in requests}
    by_id = {r.request_id: r for r in requests}

    @cache
    def dispatched(name: str) -> float:
        of = by_id[name]
        return max(map(settled, of.wait_for), default=0.0) + of.delay_s

    def settled(name: str) -> float:
        call = by_id[name].call
        return dispatched(name) + service[name] + (call.wait_s if call else 0.0)

    run = schedule(workload(*requests), lambda r: service[r.request_id])
    assert run.dispatched_s == {name: dispatched(name) for name in by_id}
    assert run.makespan_s == max(map(settled, by_id))
