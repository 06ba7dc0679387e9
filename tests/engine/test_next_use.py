"""Which KV SGLang evicts, on a real scheduler: what is used next the latest."""

import pytest

from tests.engine.scenarios import AGENT, prompt, start_call, tiers
from tokencake_sglang.agents.events import AgentFinish
from tokencake_sglang.agents.identity import AgentTag

LATER = AgentTag(agent="later", application="app")


@pytest.mark.parametrize(("agent_s", "later_s", "stays"), [(20, 300, AGENT), (300, 20, LATER)])
def test_the_agent_that_returns_last_goes_first(harness, agent_s, later_s, stays):
    """Not the one that was used longest ago."""
    harness.generate(prompt(1), 4, AGENT)
    start_call(harness, AGENT, agent_s)
    harness.generate(prompt(2), 4, LATER)
    start_call(harness, LATER, later_s)
    harness.generate(prompt(3, 1000), 4)
    assert tiers(harness, stays)[0] > 0
    assert tiers(harness, LATER if stays is AGENT else AGENT)[0] == 0


def test_a_finished_agent_goes_before_one_that_may_return(harness):
    harness.generate(prompt(2), 4, LATER)
    harness.at(harness.now_s + 500.0)
    harness.generate(prompt(1), 4, AGENT)
    harness.send(AgentFinish(agent=AGENT.agent, application=AGENT.application))
    harness.generate(prompt(3, 1000), 4)
    assert tiers(harness, LATER)[0] > 0
    assert tiers(harness, AGENT)[0] == 0


@pytest.mark.parametrize(("passed_s", "agent_stays"), [(1.0, False), (120.0, True)])
def test_untagged_requests_and_agents_compete_in_seconds(harness, passed_s, agent_stays):
    """What was read a second ago is kept before what returns in minutes, and what returns in half
    a minute before what was read two minutes ago."""
    harness.generate(prompt(1), 4, AGENT)
    start_call(harness, AGENT, 150.0)
    untagged = prompt(2)
    harness.generate(untagged, 4)
    harness.at(harness.now_s + passed_s)
    harness.generate(prompt(3, 1000), 4)
    assert (tiers(harness, AGENT)[0] > 0) is agent_stays


def test_what_a_finished_agent_left_counts_again_once_it_is_read(harness):
    ids = prompt(1)
    harness.generate(ids, 4, AGENT)
    harness.send(AgentFinish(agent=AGENT.agent, application=AGENT.application))
    harness.step()
    leaf_id = harness.planner.residents[AGENT.key].leaf_id
    eviction = harness.planner.eviction
    assert eviction.seconds_to_next_use(harness.cache.path(leaf_id)[-1]) == float("inf")
    harness.generate(ids, 4)
    assert eviction.seconds_to_next_use(harness.cache.path(leaf_id)[0]) < 1.0


def test_an_eviction_leaves_a_record_that_says_what_was_expected(harness):
    harness.generate(prompt(1), 4, AGENT)
    start_call(harness, AGENT, 300.0)
    return_s = harness.now_s + 300.0
    harness.generate(prompt(3, 1800), 4)
    harness.step()
    taken = [line for line in harness.planner.log.recent if line.action == "release"]
    assert {(line.agent, line.reason) for line in taken} == {("coder", "in_call")}
    assert sum(line.tokens for line in taken) == tiers(harness, AGENT)[1]
    assert {line.detail["expected_return_s"] for line in taken} == {return_s}


def test_a_branch_that_the_agent_has_left_goes_first(harness):
    """As after its context was compacted: the old turns are in nobody's way back."""
    harness.generate(prompt(1), 4, AGENT)
    old_leaf = harness.planner.residents[AGENT.key].leaf_id
    harness.generate(prompt(2, 300), 4, AGENT)
    harness.at(harness.now_s + 1.0)
    other = prompt(4, 300)
    harness.generate(other, 4)
    eviction = harness.planner.eviction
    left = harness.cache.path(old_leaf)[-1]
    assert eviction.seconds_to_next_use(left) == float("inf")
    harness.generate(prompt(1), 4)
    assert eviction.seconds_to_next_use(harness.cache.path(old_leaf)[-1]) < 1.0, "used again"


def test_without_tags_the_order_is_sglangs_own(harness):
    for seed in range(6):
        harness.generate(prompt(seed, 250), 2)
        harness.at(harness.now_s + 0.5)
    core = harness.cache.tree_core
    leaves = [node for node in core.root_node.children.values() if not node.evicted]
    assert len(leaves) > 3
    by_rank = sorted(leaves, key=harness.planner.eviction.get_priority)
    assert by_rank == sorted(leaves, key=lambda node: node.last_access_time)
