"""Clients that die, aborts, flushes, a full host: nothing leaks a pin, a slot or a task."""

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
from tokencake_sglang.agents.events import ApplicationFinish, RequestBegin
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.agents.table import AgentState


def test_a_client_that_dies_in_a_call_is_forgotten_with_its_holds(harness):
    stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    assert harness.planner.temporal.snapshot()["held"] == 1
    harness.at(harness.now_s + 700.0)  # past the call's time-out
    harness.step(2)
    assert harness.cache.pin_count == 0
    assert harness.planner.table.get(AGENT.key).state is AgentState.IDLE


def test_a_request_aborted_while_its_upload_is_held_lets_go(harness):
    context = stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    blocker = harness.submit(prompt(90, 1200), 60)
    harness.step(2)
    rid = harness.submit(context + prompt(91, 300), 4, AGENT)
    harness.step(2)
    harness.abort(rid)
    harness.step(2)
    assert harness.cache.pin_count == 0
    harness.run(blocker)


def test_a_request_that_never_reaches_the_rank_lets_go(harness):
    """The main process announced it, then refused it (too long, say)."""
    stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    harness.send(RequestBegin(rid="refused", tag=AGENT))
    harness.step()
    from tokencake_sglang.agents.events import RequestEnd

    harness.send(RequestEnd(rid="refused"))
    harness.step()
    assert harness.cache.pin_count == 0


def test_flush_cache_while_an_upload_is_held(harness):
    stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    assert harness.planner.temporal.snapshot()["held"] == 1
    assert harness.scheduler.flush_cache()
    assert harness.cache.pin_count == 0
    assert harness.planner.residents == {}
    finish_calls(harness, AGENT)
    harness.step(4)
    assert harness.planner.snapshot()["resets"] >= 1
    assert harness.generate(prompt(1), 16, AGENT) == harness.generate(prompt(1), 16)


def test_flush_cache_is_refused_while_a_load_is_in_flight(harness):
    stalled_agent(harness)
    fill_pool(harness)
    leaf = harness.planner.residents[AGENT.key].leaf_id
    assert harness.cache.upload(leaf, 256) > 0
    assert not harness.scheduler.flush_cache()
    harness.settle()
    assert harness.scheduler.flush_cache()


def test_a_full_host_tier_keeps_the_agent_on_the_device(harness, monkeypatch):
    monkeypatch.setattr(harness.cache, "write_through_threshold", 1 << 30)
    monkeypatch.setattr(harness.cache.cache_controller.mem_pool_host, "alloc", lambda n: None)
    monkeypatch.setattr(harness.cache, "evict_host", lambda *args, **kwargs: 0)
    host = type(harness.cache.cache_controller.mem_pool_host)
    monkeypatch.setattr(host, "available_size", lambda self: 0)
    stalled_agent(harness)
    harness.step(4)
    assert harness.decisions("insure") == [("coder", "later")]
    leaf = harness.planner.residents[AGENT.key].leaf_id
    assert harness.cache.release(leaf) == 0
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)


def test_a_lost_call_finish_is_made_up_for_by_the_next_request(harness):
    context = stalled_agent(harness, predicted_s=500.0)
    harness.generate(context, 4, AGENT)
    harness.step()
    agent = harness.planner.table.get(AGENT.key)
    assert not agent.calls
    assert agent.state is AgentState.IDLE


def test_parallel_calls_are_waited_for_together(harness):
    stalled_agent(harness, predicted_s=5.0)
    start_call(harness, AGENT, 60.0, call_id="second")
    assert harness.planner.residents[AGENT.key].return_s == harness.now_s + 60.0


def test_application_finish_ends_everything_of_the_application(harness):
    critical = AgentTag(agent="reviewer", application="app", critical=True)
    harness.generate(prompt(95, 200), 4, critical)
    stalled_agent(harness)
    harness.send(ApplicationFinish(application="app"))
    harness.step(2)
    assert harness.cache.pin_count == 0
    assert harness.planner.temporal.snapshot()["in_gap"] == 0
    states = harness.planner.snapshot()["agents"]
    assert states == {"finished": 2}


def test_an_agent_whose_kv_was_dropped_meanwhile_returns_without_it(harness):
    context = stalled_agent(harness)
    leaf = harness.planner.residents[AGENT.key].leaf_id
    fill_pool(harness)
    assert harness.cache.path(leaf)
    harness.cache.evict_host(10_000)
    assert not harness.cache.path(leaf)
    harness.at(harness.now_s + 9.9)
    harness.step(4)
    finish_calls(harness, AGENT)
    harness.generate(context, 4, AGENT)
    assert harness.decisions("return") == [("coder", "lost")]


def test_a_signal_for_a_finished_agent_does_not_disturb_the_scheduler(harness):
    """The main process refuses it; a rank that were to see it all the same must go on serving."""
    harness.generate(prompt(1), 16, AGENT)
    harness.send(ApplicationFinish(application="app"))
    start_call(harness, AGENT, 5.0)
    assert harness.planner.temporal.snapshot()["in_gap"] == 0
    assert len(harness.generate(prompt(2), 4)) == 4
