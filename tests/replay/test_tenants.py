"""What tenants held while all of them asked for something; whole runs are in tests/timewarp."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.replay.builders import request, workload
from tokencake_sglang.replay import arrivals
from tokencake_sglang.replay import workload as replay
from tokencake_sglang.replay.tenants import Holding, Holdings, contended
from tokencake_sglang.replay.workload import ReplayError

BOTH = frozenset("ab")


def test_shares_are_of_the_time_in_which_all_ask_for_something() -> None:
    samples = [
        Holding(0.0, {"a": 90, "b": 0}, frozenset("a")),  # b asks for nothing yet
        Holding(10.0, {"a": 60, "b": 20}, BOTH),
        Holding(20.0, {"a": 30, "b": 40}, BOTH),
        Holding(50.0, {"a": 0, "b": 100}, frozenset("b")),
    ]
    total_s, parts = contended(samples, "ab", pool_tokens=100, end_s=90.0)
    assert total_s == 40.0
    assert parts["a"].share == pytest.approx(1500 / (1500 + 1400))
    assert parts["b"].pool_mean == pytest.approx(0.35)
    assert parts["b"].pool_most == 0.40
    assert parts["a"].share + parts["b"].share == pytest.approx(1.0)


def test_tenants_that_are_never_busy_at_once_have_shared_nothing() -> None:
    samples = [Holding(0.0, {"a": 9, "b": 0}, frozenset("a"))]
    total_s, parts = contended(samples, "ab", pool_tokens=100, end_s=5.0)
    assert (total_s, parts["a"].share, parts["a"].pool_mean) == (0.0, 0.0, 0.0)


def test_what_requests_of_one_tenant_share_counts_once() -> None:
    """Requests 1 and 2 are a's and share 100 tokens of the tree; 3 is b's and under way."""
    of = {"1": "a", "2": "a", "3": "b", "4": "b"}
    run = workload(
        *(request(name, application=f"app-{name}", tenant=tenant) for name, tenant in of.items())
    )
    nodes = {
        name: SimpleNamespace(node_id=name, path_start=start, path_end=end, full_value_len=True)
        for name, start, end in (("root", 0, 100), ("one", 100, 130), ("two", 100, 150))
    }
    paths: dict[Any, Any] = {
        "one": [nodes["root"], nodes["one"]],
        "two": [nodes["root"], nodes["two"]],
        "none": [],
    }

    def running(rid: str, leaf: str, allocated: int) -> Any:
        kv = SimpleNamespace(kv_allocated_len=allocated)
        return SimpleNamespace(rid=rid, lock=SimpleNamespace(node=leaf), kv=kv)

    idle = False
    reqs = [running("1", "one", 137), running("2", "two", 151), running("3", "none", 40)]
    warp: Any = SimpleNamespace(
        observers=[],
        clock=SimpleNamespace(now_s=0.0),
        requests={rid: SimpleNamespace(finished_s=7.0 if rid == "4" else None) for rid in of},
        scheduler=SimpleNamespace(
            token_to_kv_pool_allocator=SimpleNamespace(available_size=lambda: 1000),
            running_batch=SimpleNamespace(reqs=reqs[:2], is_empty=lambda: idle),
            last_batch=SimpleNamespace(reqs=reqs[1:2]),  # one of both is counted once
            chunked_req=reqs[2],
            tree_cache=SimpleNamespace(
                tree_core=SimpleNamespace(
                    collect_path_info=lambda leaves: [paths[leaf] for leaf in leaves]
                )
            ),
        ),
    )
    holdings = Holdings(run, warp, interval_s=2.0)
    assert warp.observers == [holdings.observe]
    holdings.observe(warp)
    warp.clock.now_s = 1.9
    holdings.observe(warp)  # too soon
    (sample,) = holdings.samples
    assert sample.tokens == {"a": 100 + 30 + 50 + 7 + 1, "b": 40}
    assert sample.busy == BOTH
    warp.requests["3"].finished_s = 2.0
    warp.clock.now_s = 2.0
    holdings.observe(warp)
    assert holdings.samples[-1].busy == frozenset("a")
    idle, warp.scheduler.last_batch = True, None
    for rid in of:
        warp.requests[rid].finished_s = 2.5
    for warp.clock.now_s in (2.5, 2.6):
        holdings.observe(warp)
    assert [(s.time_s, s.busy) for s in holdings.samples[2:]] == [(2.5, frozenset())]


def test_a_tenant_is_kept_in_files_and_left_out_where_there_is_none(tmp_path: Any) -> None:
    path = tmp_path / "replay.jsonl"
    run = workload(request("a", tenant="acme"), request("b", after="a"))
    replay.save(path, run)
    assert replay.read(path).requests == run.requests
    named, without = path.read_text().splitlines()[1:]
    assert '"tenant":"acme"' in named
    assert "tenant" not in without


@pytest.mark.parametrize("fields", [{"application": None, "tenant": "acme"}, {"tenant": ""}])
def test_a_tenant_of_nobody_or_without_a_name_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ReplayError, match="request 'a': tenant: expected a name beside an agent's"):
        workload(request("a", **fields))


def test_applications_are_dealt_out_to_tenants_in_turn_and_chat_to_none() -> None:
    application = workload(request("app/x"), request("app/y", after="app/x"))
    copies = arrivals.replicate(application, 3)
    chat = workload(request("chat", application=None))
    dealt = arrivals.with_tenants(arrivals.merge("both", [chat, copies]), ["a", "b"])
    assert [r.tenant for r in dealt.requests] == [None, "a", "a", "b", "b", "a", "a"]


def test_later_moves_arrivals_and_nothing_else() -> None:
    run = workload(request("a", arrival_s=1.5), request("b", after="a"))
    moved = arrivals.later(run, 60.0)
    assert [r.arrival_s for r in moved.requests] == [61.5, None]
