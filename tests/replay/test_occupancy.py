"""Who claims cached tokens, and how a pool's state is averaged; whole runs are in tests/timewarp."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.replay.builders import request, workload
from tokencake_sglang.replay.claims import Claim, Claims
from tokencake_sglang.replay.occupancy import Extent, Occupancy, Sample
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Workload

FIRST = (Span("p", 0, 100),)
REPLY = (Span("o", 0, 10),)

RUN = workload(
    request("a", prompt=FIRST, output=REPLY, tool_s=60.0),
    request("b", after="a", prompt=(*FIRST, *REPLY, Span("t", 0, 30))),
    request("c", after="a b", prompt=(*FIRST, Span("c", 0, 3))),
    request("late", application="other", arrival_s=50.0, prompt=(Span("q", 0, 70),)),
)


class Watch:
    """What is sent and has ended, and the claims on that."""

    def __init__(self, run: Workload) -> None:
        self.sent: dict[str, Any] = {}
        self.finished: dict[str, float] = {}
        self.claims = Claims(run, self.sent, self.finished.get)

    def at(self, now_s: float, *running: str) -> set[Claim]:
        return set(self.claims.at(now_s, running))


def test_a_queued_request_claims_its_prompt_soon_and_a_running_one_claims_nothing() -> None:
    watch = Watch(RUN)
    watch.sent["a"] = None
    assert watch.at(6.0) == {Claim("a", 100, 100)}
    assert watch.at(6.0, "a") == set()


def test_a_stalled_agent_claims_what_its_next_request_reuses_and_soon_near_its_return() -> None:
    watch = Watch(RUN)
    watch.sent["a"] = None
    watch.finished["a"] = 10.0
    # b takes all 110 tokens when the call is over at 70 s; c the prompt, some time after b.
    assert watch.at(20.0) == {Claim("a", 0, 110)}
    watch.sent["late"] = None
    watch.finished["late"] = 60.0
    assert watch.at(64.9) == {Claim("a", 0, 110)}
    assert watch.at(65.0) == {Claim("a", 110, 110)}


def test_what_all_successors_have_taken_up_is_claimed_by_nobody() -> None:
    watch = Watch(RUN)
    watch.sent |= {"a": None, "late": None}
    watch.finished |= {"a": 0.0, "late": 60.0}
    watch.at(65.0)
    watch.sent["b"] = None
    assert watch.at(70.0, "b") == {Claim("a", 0, 100)}  # c is still to come
    watch.finished["b"] = 80.0
    assert watch.at(80.0) == {Claim("a", 100, 100), Claim("b", 100, 100)}
    watch.sent["c"] = None
    assert watch.at(80.0, "c") == set()


def test_an_application_claims_from_five_seconds_before_it_arrives() -> None:
    watch = Watch(RUN)
    watch.sent["a"] = None
    assert watch.at(44.9, "a") == set()
    assert watch.at(45.0, "a") == {Claim("late", 70, 70)}
    watch.sent["late"] = None
    assert watch.at(50.0, "a", "late") == set()


def node(node_id: int, start: int, end: int, on_device: bool = True) -> SimpleNamespace:
    length = end - start if on_device else None
    return SimpleNamespace(node_id=node_id, path_start=start, path_end=end, full_value_len=length)


def test_shared_nodes_count_once_and_what_is_not_on_the_device_not_at_all() -> None:
    running = Extent()
    running.add([node(1, 0, 10), node(2, 10, 30)], 1000)
    claimed = Extent(running)
    claimed.add([node(1, 0, 10), node(3, 10, 50)], 20)
    assert (running.tokens, claimed.tokens) == (30, 40)
    claimed.add([node(1, 0, 10), node(3, 10, 50), node(4, 50, 60, False), node(5, 60, 70)], 70)
    claimed.add([node(1, 0, 10), node(3, 10, 50)], 15)
    assert (running.tokens, claimed.tokens) == (30, 70)


def occupancy(interval_s: float = 1.0) -> Occupancy:
    allocator = SimpleNamespace(available_size=lambda: 100)
    scheduler = SimpleNamespace(token_to_kv_pool_allocator=allocator)
    warp: Any = SimpleNamespace(scheduler=scheduler, requests={}, observers=[])
    return Occupancy(RUN, warp, interval_s=interval_s)


def test_shares_are_weighted_by_time() -> None:
    pool = occupancy()
    pool.samples = [
        Sample(0.0, running=0, soon=0, idle=0, dead=0, free=100),
        Sample(10.0, running=40, soon=20, idle=10, dead=5, free=25),
    ]
    shares = pool.shares(40.0)
    assert (shares.used, shares.effective, shares.idle, shares.dead) == pytest.approx(
        (0.75 * 0.75, 0.75 * 0.6, 0.75 * 0.1, 0.75 * 0.05)
    )


def sampled(*turns: tuple[float, bool]) -> list[float]:
    """When samples are taken, for turns at these times, with or without something that runs."""
    pool = occupancy(interval_s=2.0)
    pool._sample = lambda now_s: Sample(now_s, 0, 0, 0, 0, 100)  # type: ignore[method-assign]
    for now_s, runs in turns:
        scheduler = SimpleNamespace(
            last_batch=object() if runs else None,
            running_batch=SimpleNamespace(is_empty=lambda runs=runs: not runs),
        )
        warp = SimpleNamespace(clock=SimpleNamespace(now_s=now_s), scheduler=scheduler)
        pool.observe(warp)  # type: ignore[arg-type]
    return [sample.time_s for sample in pool.samples]


def test_a_sample_is_taken_at_the_first_turn_after_each_multiple_of_the_interval() -> None:
    turns = (0.0, 0.5, 1.9, 2.1, 3.9, 9.0, 9.9, 10.0)
    assert sampled(*((now_s, True) for now_s in turns)) == [0.0, 2.1, 9.0, 10.0]


def test_a_sample_is_taken_when_the_scheduler_falls_idle() -> None:
    turns = ((0.0, True), (0.5, True), (0.7, False), (0.8, False), (1.9, True), (3.0, True))
    assert sampled(*turns) == [0.0, 0.7, 3.0]


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="interval_s"):
        occupancy(interval_s=0.0)
