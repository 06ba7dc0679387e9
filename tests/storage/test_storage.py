"""Storage below a host tier that is too small, on a real scheduler; see test_own_process.py."""

import os
import random
import threading
from collections.abc import Iterator

import pytest

from tests.engine.scenarios import AGENT, finish_calls, prompt, start_call
from tests.engine.test_stress import RandomAgents
from tests.storage.conftest import PAGE_SIZE
from tokencake_sglang.engine.residents import Residence

pytestmark = pytest.mark.skipif(
    os.environ.get("TOKENCAKE_TEST_STORAGE") != "1", reason="needs a process of its own"
)

PATH_TOKENS = (600 + 15) // PAGE_SIZE * PAGE_SIZE


class Slow:
    """Holds back what the storage threads do until the test says so."""

    def __init__(self, harness, monkeypatch, name: str) -> None:
        controller = harness.cache.cache_controller
        work = getattr(controller, name)
        self._may_go_on = threading.Event()
        self.begun = 0

        def slow(*args, **kwargs):
            self.begun += 1
            assert self._may_go_on.wait(timeout=30.0)
            return work(*args, **kwargs)

        monkeypatch.setattr(controller, name, slow)

    def go_on(self) -> None:
        self._may_go_on.set()


@pytest.fixture
def slow_reads(harness, monkeypatch) -> Iterator[Slow]:
    reads = Slow(harness, monkeypatch, "page_get_func")
    yield reads
    reads.go_on()


@pytest.fixture
def slow_writes(harness, monkeypatch) -> Iterator[Slow]:
    writes = Slow(harness, monkeypatch, "page_set_func")
    yield writes
    writes.go_on()


def tiers(harness) -> tuple[int, int]:
    return harness.cache.tokens_by_tier(harness.planner.residents[AGENT.key].leaf_id)


def tail_tokens(harness) -> int:
    return harness.planner.temporal.storage.tail_tokens(AGENT.key)


def crowd(harness, seed: int = 1000, requests: int = 5) -> None:
    """Untagged traffic that needs both tiers, one after another."""
    for i in range(requests):
        harness.generate(prompt(seed + i, 900), 4)
        harness.wait_for_writes()


def dropped_agent(harness, predicted_s: float = 10.0) -> list[int]:
    """One turn, a call, and nothing left of it but in storage; returns the context so far."""
    ids = prompt(1)
    context = ids + harness.generate(ids, 16, AGENT)
    harness.wait_for_writes()
    start_call(harness, AGENT, predicted_s)
    crowd(harness)
    assert tiers(harness) == (0, 0)
    assert tail_tokens(harness) == PATH_TOKENS
    return context


def fetches(harness) -> list[str]:
    return [reason for _, reason in harness.decisions("fetch")]


def last_return(harness):
    return next(d for d in reversed(harness.planner.log.recent) if d.action == "return")


def expected_turn(harness, new_tokens: int = 48) -> tuple[list[int], list[int]]:
    """The agent's second prompt, and what it gives where nothing was ever moved."""
    ids = prompt(1)
    second = ids + harness.generate(ids, 16) + prompt(2, 40)
    tokens = harness.generate(second, new_tokens)
    harness.flush()
    harness.clear_storage()
    return second, tokens


def held(harness) -> bool:
    return harness.planner.residents[AGENT.key].residence is Residence.HELD


def test_what_the_host_tier_drops_is_in_storage(harness):
    dropped_agent(harness)
    assert set(harness.decisions("drop")) == {("coder", "host_full")}
    assert len(list(harness.directory.glob("*.bin"))) >= PATH_TOKENS // PAGE_SIZE


def test_an_upload_starts_from_storage_and_ends_before_the_return(harness):
    second, expected = expected_turn(harness)
    assert dropped_agent(harness) == second[:-40]
    harness.at(harness.now_s + 5.0)
    harness.step(8)
    assert fetches(harness) == [], "read long before its time"
    harness.at(harness.now_s + 4.85)
    harness.until(lambda: held(harness))
    assert fetches(harness) == ["return_predicted", "fetched"]
    assert tiers(harness) == (PATH_TOKENS, 0)
    harness.now_s += 0.15
    finish_calls(harness, AGENT)
    rid = harness.submit(second, 48, AGENT)
    assert harness.run(rid)[0] == expected
    assert harness.cached_tokens[rid] == PATH_TOKENS
    record = last_return(harness)
    assert record.reason == "uploaded_in_time"
    assert record.detail["fetched_tokens"] == PATH_TOKENS
    assert record.detail["fetched_at_admission_tokens"] == 0


def test_an_early_finish_reads_at_once(harness):
    dropped_agent(harness, predicted_s=300.0)
    harness.now_s += 1.0
    finish_calls(harness, AGENT)
    harness.until(lambda: held(harness))
    assert fetches(harness) == ["call_finished", "fetched"]


def test_a_return_before_the_fetch_is_served_by_sglang(harness):
    second, expected = expected_turn(harness)
    dropped_agent(harness, predicted_s=300.0)
    rid = harness.submit(second, 48, AGENT)
    assert harness.run(rid)[0] == expected
    assert fetches(harness) == []
    record = last_return(harness)
    assert record.reason == "fetched_at_admission"
    assert record.detail["fetched_at_admission_tokens"] == PATH_TOKENS
    assert tail_tokens(harness) == 0, "remembered after the return"


def test_a_return_in_the_middle_of_a_read_ends_it_and_gives_the_same_tokens(harness, slow_reads):
    second, expected = expected_turn(harness)
    dropped_agent(harness)
    harness.at(harness.now_s + 9.9)
    harness.until(lambda: slow_reads.begun)
    rid = harness.submit(second, 48, AGENT)
    harness.step()
    assert fetches(harness) == ["return_predicted", "cut_short"]
    slow_reads.go_on()
    assert harness.run(rid)[0] == expected
    assert harness.cached_tokens[rid] == PATH_TOKENS
    detail = last_return(harness).detail
    assert detail["fetched_tokens"] + detail["fetched_at_admission_tokens"] == PATH_TOKENS


def partly_dropped_agent(harness) -> int:
    """Another's running request keeps a prefix of the agent's in the tree; returns what is gone."""
    shared = prompt(1)[:304]
    harness.generate(shared, 4)
    running = harness.submit(shared + prompt(5, 40), 400)
    harness.step(3)
    harness.generate(prompt(1), 16, AGENT)
    harness.wait_for_writes()
    start_call(harness, AGENT, 300.0)
    for i in range(16):
        harness.generate(prompt(2000 + i, 400), 4)
        harness.wait_for_writes()
        if tail_tokens(harness):
            break
    assert 256 <= tail_tokens(harness) <= PATH_TOKENS - 304
    assert sum(tiers(harness)) >= 304
    assert running not in harness.finished
    harness.abort(running)
    return tail_tokens(harness)


def test_only_the_missing_part_is_read(harness):
    second, expected = expected_turn(harness)
    missing = partly_dropped_agent(harness)
    finish_calls(harness, AGENT)
    harness.until(lambda: tail_tokens(harness) == 0)
    assert harness.planner.log.tokens["fetch.fetched"] == missing
    rid = harness.submit(second, 48, AGENT)
    assert harness.run(rid)[0] == expected


def test_the_record_of_a_return_says_what_was_missing(harness):
    second, expected = expected_turn(harness)
    missing = partly_dropped_agent(harness)
    rid = harness.submit(second, 48, AGENT)
    assert harness.run(rid)[0] == expected
    record = last_return(harness)
    assert record.reason == "fetched_at_admission"
    assert record.detail["missing_tokens"] == missing
    assert record.detail["fetched_at_admission_tokens"] == missing


def test_what_storage_does_not_have_is_asked_for_once(harness):
    dropped_agent(harness)
    harness.clear_storage()
    harness.at(harness.now_s + 9.9)
    harness.until(lambda: "not_stored" in fetches(harness))
    for _ in range(5):
        harness.at(harness.now_s + 0.01)
        harness.step(4)
    assert fetches(harness) == ["return_predicted", "not_stored"]
    ids = prompt(1)
    rid = harness.submit([*ids, 5], 4, AGENT)
    harness.run(rid)
    assert last_return(harness).reason == "lost"


def test_a_return_that_is_forgotten_ends_its_fetch(harness):
    dropped_agent(harness)
    harness.at(harness.now_s + 9.9)
    harness.step()
    harness.finish_everything()
    assert harness.planner.temporal.storage.snapshot() == {"in_storage_only": 0, "fetching": 0}


def test_a_request_that_waits_for_storage_costs_nobody_a_pin(harness, slow_reads, monkeypatch):
    """It waits for no memory: no hold gives way to it, and nobody is said to starve."""
    starved = []
    dropped_agent(harness, predicted_s=300.0)
    monkeypatch.setattr(harness.planner, "nothing_runs", lambda: starved.append(1))
    rid = harness.submit([*prompt(1), 5], 4, AGENT)
    harness.until(lambda: slow_reads.begun)
    harness.step(5)
    assert [req.rid for req in harness.scheduler.waiting_queue] == [rid]
    assert not starved
    assert not harness.planner.left_waiting
    slow_reads.go_on()
    harness.run(rid)


def test_a_host_tier_too_small_does_not_read_the_same_for_ever(harness, monkeypatch):
    dropped_agent(harness)
    monkeypatch.setattr(harness.cache, "can_start_upload", lambda: False)
    harness.at(harness.now_s + 9.9)
    for i in range(4):
        harness.until(lambda: not harness.cache.ongoing_prefetch)
        crowd(harness, seed=5000 + 10 * i)
        assert tail_tokens(harness) == PATH_TOKENS, "still on the host"
        harness.at(harness.now_s + 0.01)
        harness.step(4)
    assert fetches(harness) == 2 * ["return_predicted", "fetched"]


def test_what_the_host_drops_after_its_time_is_read_without_waiting_for_an_event(
    harness, monkeypatch
):
    monkeypatch.setattr(harness.cache, "can_start_upload", lambda: False)
    harness.generate(prompt(1), 16, AGENT)
    harness.wait_for_writes()
    start_call(harness, AGENT, 10.0)
    harness.at(harness.now_s + 9.9)
    harness.step(4)
    crowd(harness)
    harness.step(30)
    assert fetches(harness)[:1] == ["return_predicted"]


def test_a_copy_waits_until_the_host_may_drop_what_is_being_written(harness, slow_writes):
    """Nodes on their way to storage cannot be dropped: the host is full for a while, not for good."""
    for i in range(4):
        harness.generate(prompt(3000 + i, 900), 4)
    harness.until(lambda: slow_writes.begun)
    harness.generate(prompt(1), 16, AGENT)
    leaf_id = harness.planner.residents[AGENT.key].leaf_id
    assert not harness.cache.is_insured(leaf_id), "the host tier is not full"
    start_call(harness, AGENT, 10.0)
    harness.step(4)
    assert harness.decisions("insure") == []
    slow_writes.go_on()
    harness.until(lambda: harness.cache.is_insured(leaf_id))
    assert harness.decisions("insure") == [("coder", "call_started")]


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_everything_finishes_with_the_right_tokens(harness, seed):
    turns = RandomAgents(harness, seed).play()
    assert harness.planner.log.counts["fetch.fetched"], "nothing came back from storage"
    harness.finish_everything()
    harness.clear_storage()
    harness.flush()
    for context, output in random.Random(seed).sample(turns, 8):
        assert harness.generate(context, len(output)) == output


def test_a_flush_forgets_what_was_dropped_but_not_what_is_stored(harness):
    second, expected = expected_turn(harness)
    dropped_agent(harness, predicted_s=300.0)
    harness.flush()
    assert harness.planner.temporal.storage.snapshot() == {"in_storage_only": 0, "fetching": 0}
    rid = harness.submit(second, 48, AGENT)
    assert harness.run(rid)[0] == expected
    assert harness.cached_tokens[rid] == PATH_TOKENS
