"""Swapping out during a tool call and back in time, on a real scheduler."""

import dataclasses
import math
import time

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
from tokencake_sglang.agents.events import AgentFinish
from tokencake_sglang.agents.identity import AgentKey, AgentTag
from tokencake_sglang.engine.temporal import LOOK_INTERVAL_S, LOOKS


def test_a_stalled_agent_leaves_the_device_when_others_need_the_memory(harness):
    stalled_agent(harness)
    fill_pool(harness)
    assert tiers(harness, AGENT) == (0, PATH_TOKENS)
    assert set(harness.decisions("release")) == {("coder", "in_call")}


def test_nothing_is_released_while_nobody_needs_the_memory(harness):
    stalled_agent(harness)
    harness.step(20)
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)
    assert harness.decisions("release") == []


def test_the_longer_a_call_lasts_the_more_is_to_come(harness):
    stalled_agent(harness, predicted_s=10.0)
    started_s, rests = harness.now_s, []
    for elapsed_s in (20.0, 100.0, 500.0):
        harness.at(started_s + elapsed_s)
        harness.step()
        rests.append(harness.planner.residents[AGENT.key].return_s - harness.now_s)
    assert 0.0 < rests[0] < rests[1] < rests[2]


def test_of_a_crowd_some_agents_are_expected_anew_in_each_interval(harness, monkeypatch):
    for number in range(LOOKS + 2):
        tag = AgentTag(agent=f"coder-{number}", application="app")
        harness.generate(prompt(number, 100), 4, tag)
        start_call(harness, tag, predicted_s=None)
    looked: list[str] = []
    returns = harness.planner.temporal.returns
    revise = returns.revise

    def note(agent, now_s: float) -> None:
        looked.append(agent.key.agent)
        revise(agent, now_s)

    monkeypatch.setattr(returns, "revise", note)
    begin_s = LOOK_INTERVAL_S * math.ceil((harness.now_s + 2.0) / LOOK_INTERVAL_S)
    for share in (0.1, 0.5, 0.9):
        harness.at(begin_s + share * LOOK_INTERVAL_S)
        harness.step(2)
    assert len(set(looked)) == len(looked) == LOOKS
    harness.at(begin_s + 1.1 * LOOK_INTERVAL_S)
    harness.step(2)
    assert len(set(looked)) == len(looked) == LOOKS + 2


def test_swapped_out_and_back_gives_the_tokens_of_never_swapped(harness):
    ids = prompt(5)
    first = harness.generate(ids, 48)
    second_prompt = ids + first + prompt(6, 50)
    expected = harness.generate(second_prompt, 64)
    harness.flush()
    assert harness.generate(ids, 48, AGENT) == first
    start_call(harness, AGENT, 10.0)
    fill_pool(harness)
    assert tiers(harness, AGENT)[0] == 0
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    finish_calls(harness, AGENT)
    assert harness.generate(second_prompt, 64, AGENT) == expected


def test_a_prefix_shared_with_a_running_agent_stays_on_the_device(harness):
    shared = prompt(7, 400)
    other = AgentTag(agent="other", application="app")
    harness.generate(shared + prompt(8, 200), 4, AGENT)
    running = harness.submit(shared + prompt(9, 100), 60, other)
    harness.step(3)
    start_call(harness, AGENT, 50.0)
    filler = [harness.submit(prompt(3000 + i, 900), 4) for i in range(3)]
    harness.step(12)
    assert set(harness.decisions("release")) == {("coder", "in_call")}
    assert running not in harness.finished
    assert tiers(harness, AGENT)[0] >= 400, "the shared prefix went with the exclusive part"
    harness.run(running, *filler)


def test_a_prefix_shared_with_an_idle_agent_stays_on_the_device(harness):
    shared = prompt(7, 400)
    other = AgentTag(agent="other", application="app")
    harness.generate(shared + prompt(8, 200), 4, AGENT)
    harness.generate(shared + prompt(9, 100), 4, other)
    harness.settle()
    harness.cache.release(harness.planner.residents[AGENT.key].leaf_id)
    assert tiers(harness, AGENT)[0] == 400
    assert tiers(harness, other)[1] == 0


def test_an_unbacked_leaf_is_never_evicted_by_us(harness, monkeypatch):
    monkeypatch.setattr(harness.cache, "insure", lambda leaf_id: None)
    monkeypatch.setattr(harness.cache, "write_through_threshold", 1 << 30)
    stalled_agent(harness)
    resident = harness.planner.residents[AGENT.key]
    assert harness.cache.release(resident.leaf_id) == 0
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)


def test_insure_makes_the_host_copy_that_sglang_has_not_made(harness, monkeypatch):
    monkeypatch.setattr(harness.cache, "write_through_threshold", 1 << 30)
    ids = prompt(11)
    harness.generate(ids, 8, AGENT)
    leaf = harness.planner.residents[AGENT.key].leaf_id
    assert not harness.cache.is_insured(leaf)
    start_call(harness, AGENT, 10.0)
    harness.settle()
    assert harness.cache.is_insured(leaf)
    assert ("coder", "call_started") in harness.decisions("insure")


def test_a_copy_waits_for_the_room_that_others_were_promised(harness, monkeypatch):
    """It locks the agent's path: SGLang takes a prompt's later chunks for granted."""
    monkeypatch.setattr(harness.cache, "write_through_threshold", 1 << 30)
    harness.generate(prompt(12), 8, AGENT)
    leaf = harness.planner.residents[AGENT.key].leaf_id
    harness.planner.committed_tokens = lambda *_: 2048 - 300
    start_call(harness, AGENT, 10.0)
    harness.settle()
    assert not harness.cache.is_insured(leaf)
    del harness.planner.committed_tokens
    harness.settle()
    assert harness.cache.is_insured(leaf)


@pytest.fixture
def uncopied(harness, monkeypatch) -> dict[str, int]:
    """Agents whose KV has no host copy, and their leaves; there is no room for a copy yet."""
    monkeypatch.setattr(harness.cache, "write_through_threshold", 1 << 30)
    monkeypatch.setattr(harness.planner, "committed_tokens", lambda *_: 1 << 30)
    leaves = {}
    for seed, (name, tokens) in enumerate((("soon", 600), ("small", 100), ("late", 600)), start=14):
        harness.generate(prompt(seed, tokens), 8, AgentTag(agent=name, application="app"))
        leaves[name] = harness.planner.residents[AgentKey("app", name)].leaf_id
    return leaves


def stall(harness, **calls_s: float) -> None:
    for name, call_s in calls_s.items():
        start_call(harness, AgentTag(agent=name, application="app"), call_s)
    harness.settle()


def test_what_is_used_last_is_copied_first(harness, uncopied, monkeypatch):
    stall(harness, soon=10.0, small=60.0, late=300.0)
    assert not any(map(harness.cache.is_insured, uncopied.values()))
    monkeypatch.undo()
    monkeypatch.setattr(harness.cache, "write_through_threshold", 1 << 30)
    harness.settle()
    assert [agent for agent, _ in harness.decisions("insure")] == ["late", "small", "soon"]


def test_one_for_which_there_is_no_room_holds_up_nobody(harness, uncopied, monkeypatch):
    stall(harness, soon=10.0, small=60.0, late=300.0)
    monkeypatch.setattr(harness.planner, "committed_tokens", lambda *_: 2048 - 400)
    harness.settle()
    assert [agent for agent, _ in harness.decisions("insure")] == ["small"]


def test_a_finished_agent_is_given_up_first(harness):
    first, second = AGENT, AgentTag(agent="later", application="app")
    harness.generate(prompt(12), 4, first)
    harness.generate(prompt(13), 4, second)
    start_call(harness, second, 500.0)
    harness.send(AgentFinish(agent=first.agent, application=first.application))
    fill_pool(harness, requests=2)
    assert harness.decisions("release")[0] == ("coder", "finished")


def test_untagged_requests_leave_no_trace_in_the_planner(harness):
    fill_pool(harness, requests=2)
    assert harness.planner.residents == {}
    assert len(harness.planner.table) == 0


def test_a_crowd_of_calls_is_insured_in_no_time(harness):
    """Whoever comes next was once looked for among all others: of so many, for seconds."""
    stalled_agent(harness)
    harness.settle()
    temporal = harness.planner.temporal
    resident = harness.planner.residents[AGENT.key]
    for number in range(10_000):
        key = AgentKey("crowd", f"a{number}")
        agent = dataclasses.replace(resident.agent, key=key, seen_order=number)
        temporal._uninsured[key] = msgspec.structs.replace(resident, agent=agent)
    began_s = time.process_time()
    harness.step()
    assert time.process_time() - began_s < 1.0
    assert temporal._uninsured == {}
