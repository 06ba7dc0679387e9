"""What a host tier that is full has copies of, on a real scheduler."""

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
from tokencake_sglang.agents.identity import AgentTag

HEAD_TOKENS = 896


def others(count: int) -> list[AgentTag]:
    return [AgentTag(agent=f"other-{i}", application=f"other-{i}") for i in range(count)]


def stall(harness, tag: AgentTag, seed: int, call_s: float) -> list[int]:
    """A turn and a call of the agent's; returns its context."""
    ids = prompt(seed, HEAD_TOKENS)
    context = ids + harness.generate(ids, 16, tag)
    start_call(harness, tag, call_s)
    harness.settle(2)
    return context


def kept_tokens(harness, tags: list[AgentTag]) -> int:
    return sum(sum(tiers(harness, tag)) for tag in tags)


def host_tokens(harness) -> int:
    return harness.cache.cache_controller.mem_pool_host.size


@pytest.mark.parametrize(("others_s", "stays"), [(300.0, True), (15.0, False)])
def test_what_is_used_soonest_stays_whoever_was_written_last(harness, others_s, stays):
    stalled_agent(harness, predicted_s=100.0)
    for i, tag in enumerate(others(14)):  # more than both tiers hold
        stall(harness, tag, 10 + i, others_s)
    device, host = tiers(harness, AGENT)
    assert (device + host == PATH_TOKENS) is stays


def test_both_tiers_hold_more_than_the_host_and_give_back_the_same_tokens(harness):
    """While one runs, its copy makes room for that of another."""
    tags = others(10)
    between_s = 20.0  # they return one after the other, round and round
    contexts = []
    for i, tag in enumerate(tags):
        contexts.append(stall(harness, tag, 10 + i, between_s * (i + 1)))
    assert sum(map(len, contexts)) > host_tokens(harness), "the host tier would hold them all"
    outputs = []
    kept = []
    for _ in range(2):
        for tag, context in zip(tags, contexts, strict=True):
            harness.at(harness.now_s + between_s)
            finish_calls(harness, tag)
            outputs.append(harness.generate(context, 8, tag))
            start_call(harness, tag, between_s * len(tags))
            harness.settle(2)
            kept.append(kept_tokens(harness, tags))
    assert "locked_on_device" in {reason for _, reason in harness.decisions("drop")}
    assert "may_be_evicted" in {reason for _, reason in harness.decisions("insure")}
    assert max(kept) > host_tokens(harness)
    harness.finish_everything()
    harness.flush()
    assert 2 * [harness.generate(context, 8) for context in contexts] == outputs


def test_the_dead_make_room_at_once(harness):
    """Copies that nobody will use are no reason to put a copy off."""
    from tokencake_sglang.agents.events import AgentFinish

    for i, tag in enumerate(others(12)):
        stall(harness, tag, 10 + i, 300.0)
    for tag in others(12):
        finish_calls(harness, tag)
        harness.send(AgentFinish(agent=tag.agent, application=tag.application))
    harness.step()
    stalled_agent(harness)
    harness.settle(2)
    leaf_id = harness.planner.residents[AGENT.key].leaf_id
    assert harness.cache.is_insured(leaf_id)
    assert "later" not in {reason for who, reason in harness.decisions("insure") if who == "coder"}


def test_a_path_that_has_lost_its_end_stays_its_agents(harness):
    """The rest is still needed when the agent returns, and evicted by that."""
    context = stalled_agent(harness, predicted_s=50.0)
    fill_pool(harness)
    lost = harness.cache.evict_host(1)
    assert 0 < lost < PATH_TOKENS
    assert tiers(harness, AGENT) == (0, PATH_TOKENS - lost)
    for node in harness.cache.path(leaf_of(harness)):
        assert harness.planner.eviction.seconds_to_next_use(node) == pytest.approx(50.0, abs=1.0)
    harness.step()
    assert harness.decisions("drop") == [("coder", "lost")]
    finish_calls(harness, AGENT)
    outputs = harness.generate(context, 8, AGENT)
    assert harness.decisions("return") == [("coder", "lost")]
    harness.finish_everything()
    harness.flush()
    assert harness.generate(context, 8) == outputs


def leaf_of(harness, tag: AgentTag = AGENT) -> int:
    return harness.planner.residents[tag.key].leaf_id


def drop_path(harness, leaf_id: int) -> int:
    return sum(harness.cache.drop_copy(node.id) for node in reversed(harness.cache.path(leaf_id)))


def test_a_copy_of_what_the_device_has_can_be_dropped(harness):
    stalled_agent(harness)
    harness.settle()
    leaf_id = leaf_of(harness)
    host = harness.cache.cache_controller.mem_pool_host
    before = host.available_size()
    assert drop_path(harness, leaf_id) == PATH_TOKENS
    assert host.available_size() == before + PATH_TOKENS
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)
    assert not harness.cache.is_insured(leaf_id)
    assert harness.cache.insure(leaf_id) == PATH_TOKENS, "it can be copied again"


def test_what_only_the_host_has_is_not_dropped(harness):
    stalled_agent(harness)
    fill_pool(harness)
    assert tiers(harness, AGENT) == (0, PATH_TOKENS)
    assert harness.cache.drop_copy(leaf_of(harness)) == 0
    assert tiers(harness, AGENT) == (0, PATH_TOKENS)


def test_a_copy_that_one_below_needs_is_not_dropped(harness):
    """SGLang takes for granted that what is above a copy has one: an eviction would lose both."""
    context = stalled_agent(harness)
    finish_calls(harness, AGENT)
    harness.generate(context + prompt(2, 64), 4, AGENT)
    harness.settle()
    path = harness.cache.path(leaf_of(harness))
    assert len(path) > 1
    assert harness.cache.drop_copy(path[0].id) == 0
    assert [harness.cache.drop_copy(node.id) > 0 for node in reversed(path)] == [True] * len(path)


def test_a_copy_that_is_being_written_or_read_is_not_dropped(harness):
    stalled_agent(harness)
    harness.settle()
    leaf_id = leaf_of(harness)
    drop_path(harness, leaf_id)
    assert harness.cache.insure(leaf_id) == PATH_TOKENS
    assert drop_path(harness, leaf_id) == 0, "on its way to the host"
    harness.settle()
    fill_pool(harness)
    harness.settle()
    while harness.cache.upload(leaf_id, PATH_TOKENS) == 0:
        harness.step()
    assert drop_path(harness, leaf_id) == 0, "on its way to the device"
    harness.settle()
    assert drop_path(harness, leaf_id) == PATH_TOKENS
