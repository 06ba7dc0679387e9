"""Uploads ahead of a return, in pieces, and holds, on a real scheduler."""

import dataclasses

import msgspec
import pytest

from tests.engine.scenarios import (
    AGENT,
    PATH_TOKENS,
    fill_pool,
    finish_calls,
    prompt,
    stalled_agent,
    start_call,
    tiers,
)
from tokencake_sglang.agents.events import CallProgress
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.engine.residents import Residence
from tokencake_sglang.engine.step_gap import LONGEST_STEP_S
from tokencake_sglang.temporal.duration import CallFeatures
from tokencake_sglang.temporal.returns import Return


def test_it_is_back_and_held_before_the_predicted_end(harness):
    stalled_agent(harness, predicted_s=10.0)
    fill_pool(harness)
    harness.at(harness.now_s + 9.0)
    harness.step(8)
    assert tiers(harness, AGENT)[0] == 0, "uploaded long before its time"
    harness.at(harness.now_s + 0.85)
    harness.step(12)
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)
    assert harness.planner.residents[AGENT.key].residence is Residence.HELD


def test_uploads_go_in_bounded_pieces(harness):
    stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    pieces = [d.tokens for d in harness.planner.log.recent if d.action == "upload"]
    assert len(pieces) > 1
    assert max(pieces) <= 256
    assert sum(pieces) == PATH_TOKENS


def test_where_steps_are_long_a_piece_is_what_the_link_carries_in_one(harness):
    """Nothing starts inside a step: after less the link would idle until the next."""
    stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.4)
    harness.step()
    harness.at(harness.now_s + 0.5)
    harness.step(4)
    pieces = [d.tokens for d in harness.planner.log.recent if d.action == "upload"]
    assert pieces == [PATH_TOKENS]


def test_a_held_prefix_survives_pressure_until_its_request_comes(harness):
    context = stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    fill_pool(harness, seed=2000)
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)
    finish_calls(harness, AGENT)
    rid = harness.submit(context + [7] * 40, 4, AGENT)
    harness.run(rid)
    assert harness.cached_tokens[rid] == PATH_TOKENS
    (record,) = [d for d in harness.planner.log.recent if d.action == "return"]
    assert record.reason == "uploaded_in_time"
    assert "upload_kept_back" not in record.detail
    assert harness.decisions("unhold") == [("coder", "admitted")]


def test_nothing_is_uploaded_while_others_wait_for_memory(harness):
    """And the record of the return says so."""
    context = stalled_agent(harness)
    fill_pool(harness)
    running = harness.submit(prompt(98, 1000), 60)
    waiting = harness.submit(prompt(99, 1500), 4)
    harness.step(3)
    harness.at(harness.now_s + 9.9)
    harness.step(4)
    assert [req.rid for req in harness.scheduler.waiting_queue] == [waiting]
    assert harness.decisions("upload") == []
    due_s = harness.now_s
    finish_calls(harness, AGENT)
    returning = harness.submit(context + [7] * 40, 4, AGENT)
    harness.run(running, waiting, returning)
    (record,) = [d for d in harness.planner.log.recent if d.action == "return"]
    assert record.reason == "not_uploaded"
    assert record.detail["upload_due_s"] == due_s
    assert record.detail["upload_kept_back"] == "queue_waits"


@pytest.mark.parametrize("promised", [True, False])
def test_into_a_pool_in_use_comes_back_who_said_when_and_not_who_is_guessed(
    harness, promised, monkeypatch
):
    """What comes back for a guess may be held for long; two fifths of the pool are left for others."""
    stalled_agent(harness, predicted_s=10.0)
    temporal = harness.planner.temporal
    (end,) = temporal.returns._ends[AGENT.key]
    temporal.returns._ends[AGENT.key] = (msgspec.structs.replace(end, promised=promised),)
    monkeypatch.setattr(temporal.returns, "revise", lambda agent, now_s: None)
    temporal._expect(harness.planner.residents[AGENT.key])
    fill_pool(harness)
    running = harness.submit(prompt(98, 1250), 60)  # leaves less than 800 of 2,048
    harness.step(4)
    harness.at(harness.now_s + 9.9)
    harness.step(8)
    assert running not in harness.finished
    assert tiers(harness, AGENT)[0] == (PATH_TOKENS if promised else 0)
    assert (("coder", "no_room") in harness.decisions("upload")) is not promised
    harness.run(running)


def test_an_upload_leaves_the_memory_that_a_chunked_prompt_was_promised(harness):
    """SGLang takes a prompt's later chunks for granted: it dies if their slots are gone."""
    stalled_agent(harness)
    fill_pool(harness)
    long = harness.submit(prompt(97, 1900), 4)
    harness.step()  # the first chunk of 512
    assert harness.scheduler.chunked_req is not None
    harness.at(harness.now_s + 9.9)
    harness.run(long)
    assert harness.decisions("upload"), "no upload was tried meanwhile"


def test_a_hold_lapses_when_nobody_comes(harness):
    stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    harness.at(harness.now_s + 30.0)
    harness.step(2)
    assert harness.decisions("unhold") == [("coder", "overdue")]
    assert harness.planner.temporal.snapshot()["held"] == 0


@pytest.mark.parametrize(("remaining_s", "unholds"), [(300.0, ["return_slipped"]), (2.0, [])])
def test_a_hold_ends_when_the_caller_says_that_it_will_take_long(harness, remaining_s, unholds):
    stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    assert harness.planner.residents[AGENT.key].residence is Residence.HELD
    (call,) = harness.planner.table.get(AGENT.key).calls
    harness.send(
        CallProgress(
            agent=AGENT.agent,
            application=AGENT.application,
            call_id=call.call_id,
            remaining_s=remaining_s,
        )
    )
    harness.step()
    assert [reason for _, reason in harness.decisions("unhold")] == unholds


def test_an_early_finish_uploads_at_once(harness):
    stalled_agent(harness, predicted_s=300.0)
    fill_pool(harness)
    harness.now_s += 1.0
    finish_calls(harness, AGENT)
    harness.step(12)
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)
    assert set(harness.decisions("upload")) == {("coder", "call_finished")}


def test_an_upload_leaves_enough_beside_the_prefix_that_it_locks(harness):
    """A load locks its whole path: what was evictable above the missing part is no longer."""
    shared = prompt(1)
    harness.generate(shared + prompt(2, 300), 16, AGENT)
    harness.generate(shared + prompt(3, 300), 16)
    harness.settle()
    leaf_id = harness.planner.residents[AGENT.key].leaf_id
    missing = harness.cache.release(leaf_id)
    held = harness.cache.unlocked_tokens(leaf_id)
    assert missing >= 300 and held >= 600 - harness.cache.page_size
    allocator = harness.cache.token_to_kv_pool_allocator
    free = allocator.available_size() + harness.cache.full_evictable_size()
    assert harness.cache.upload(leaf_id, 512, keep_free_tokens=free - missing) == 0
    assert harness.cache.upload(leaf_id, 512, keep_free_tokens=free - missing - held) == missing
    assert allocator.available_size() + harness.cache.full_evictable_size() >= free - missing - held
    harness.settle()


USUAL = AgentTag(agent="coder", application="app", agent_type="small")
CRITICAL = msgspec.structs.replace(USUAL, critical=True)
"""With a quota too small for its path, which would otherwise be pinned and never leave."""


def first_upload_after_s(harness, tag: AgentTag) -> float:
    """Seconds from the start of a call, whose length is learnt, to the first piece of an upload.

    Such calls took 10 to 29 s, each as often. Time passes in steps of 0.1 s.
    """
    harness.start_over()
    durations = harness.planner.temporal.returns.durations
    for number in range(100):
        call = CallFeatures("tests", tag.agent_type, tag.application)
        durations.observe(call, 10.0 + 7 * number % 20)
    harness.generate(prompt(1), 16, tag)
    started_s = harness.now_s
    start_call(harness, tag, predicted_s=None)
    fill_pool(harness)
    assert tiers(harness, tag) == (0, PATH_TOKENS)
    while not harness.decisions("upload"):
        assert harness.now_s < started_s + 60.0, "never uploaded"
        harness.at(harness.now_s + 0.1)
        harness.step()
    return harness.now_s - started_s


def test_a_critical_agents_upload_starts_earlier(harness):
    """In time for the quarter of the calls that ends first, not for the half."""
    assert 15.0 < first_upload_after_s(harness, CRITICAL) < 20.0
    assert 22.0 < first_upload_after_s(harness, USUAL) < 29.0


def test_whoever_is_of_a_critical_type_is_critical(harness, monkeypatch):
    monkeypatch.setattr(harness.planner.spatial, "critical_types", frozenset({"small"}))
    assert 15.0 < first_upload_after_s(harness, USUAL) < 20.0


@pytest.mark.parametrize(
    ("early_s", "unholds"),
    [(None, [("coder", "return_slipped")]), (20.0, [("coder", "return_slipped")]), (1.0, [])],
)
def test_a_hold_is_kept_while_its_upload_would_be_wanted(harness, monkeypatch, early_s, unholds):
    """However far the return itself is: else the early upload would have been for nothing."""
    stalled_agent(harness, predicted_s=10.0)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    resident = harness.planner.residents[AGENT.key]
    assert resident.residence is Residence.HELD
    returns = harness.planner.temporal.returns

    def revise(agent, now_s: float) -> None:
        upload_by_s = None if early_s is None else now_s + early_s
        late = Return(now_s + 60.0, now_s, promised=False, call=agent.calls[0], early_s=upload_by_s)
        returns._ends[agent.key] = (late,)

    monkeypatch.setattr(returns, "revise", revise)
    harness.at(harness.now_s + 0.2)  # its time is up: it is expected anew
    harness.step()
    assert resident.return_s == harness.now_s + 60.0
    assert harness.decisions("unhold") == unholds


LINK_TOKENS_PER_S = 127_157


@pytest.fixture
def slow_link(harness, monkeypatch):
    """Between an H200 and its host, for Qwen2.5-14B; the test's model has far less KV a token."""
    uploads = harness.planner.temporal.uploads
    timing = dataclasses.replace(uploads.timing, link_tokens_per_s=LINK_TOKENS_PER_S)
    monkeypatch.setattr(uploads, "timing", timing)


def return_beside_forwards(harness, forwards_of_tokens: int) -> list[int]:
    """The agent's call and return, beside forwards that take as long as the load of so many tokens.

    Returns the tokens of each piece that was uploaded.
    """
    forward_s = (forwards_of_tokens + 1.5) / LINK_TOKENS_PER_S
    context = stalled_agent(harness, predicted_s=10.0)
    fill_pool(harness)
    returns_s = harness.now_s + 9.9
    harness.at(returns_s - 40 * forward_s)
    running = harness.submit(prompt(98, 100), 60)
    harness.step()
    while harness.now_s < returns_s:
        harness.at(harness.now_s + forward_s)
        harness.step()
    pieces = [d.tokens for d in harness.planner.log.recent if d.action == "upload"]
    finish_calls(harness, AGENT)
    returning = harness.submit(context + [7] * 40, 4, AGENT)
    harness.run(returning, running)
    assert harness.cached_tokens[returning] == PATH_TOKENS, "loaded at admission, if not before"
    return pieces


def test_what_a_forward_hides_is_not_uploaded(harness, slow_link):
    """It is loaded layer by layer at admission, and the record of the return says so."""
    assert return_beside_forwards(harness, forwards_of_tokens=PATH_TOKENS) == []
    (record,) = [d for d in harness.planner.log.recent if d.action == "return"]
    assert record.reason == "load_hidden"


def test_forwards_that_took_long_when_it_left_do_not_count_when_it_is_due(harness, slow_link):
    """A server that has been idle has seen nothing but the prefill which takes the memory."""
    stalled_agent(harness, predicted_s=10.0)
    gap = harness.planner.temporal.step_gap
    gap.forward_s = 2 * PATH_TOKENS / LINK_TOKENS_PER_S
    harness.at(
        harness.now_s + LONGEST_STEP_S + 0.1
    )  # too long for a step: forwards stay as they are
    fill_pool(harness)
    assert tiers(harness, AGENT) == (0, PATH_TOKENS)
    assert harness.planner.temporal.uploads.is_hidden(PATH_TOKENS)
    gap.forward_s = 0.0
    harness.at(harness.now_s + 9.9 - LONGEST_STEP_S - 0.1)
    harness.step(12)
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)
    assert harness.decisions("hold") == [("coder", "uploaded")]


def test_an_upload_ends_where_a_forward_hides_the_rest(harness, slow_link):
    pieces = return_beside_forwards(harness, forwards_of_tokens=PATH_TOKENS - 200)
    assert len(pieces) == 1
    assert 200 < pieces[0] < PATH_TOKENS
    (record,) = [d for d in harness.planner.log.recent if d.action == "return"]
    assert record.reason == "load_hidden"


def test_an_upload_goes_on_where_a_forward_hides_less_than_the_rest(harness, slow_link):
    pieces = return_beside_forwards(harness, forwards_of_tokens=100)
    assert len(pieces) > 1
    assert sum(pieces) >= PATH_TOKENS - 100
