"""Tenants and untagged requests in the queue of a real scheduler with a pool of 2,048 tokens."""

import pytest

from tests.engine.scenarios import prompt
from tokencake_sglang.agents.events import ApplicationFinish, ApplicationStart, GraphNode
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.spatial.graph import NODE_S
from tokencake_sglang.spatial.paths import SETTLE_S, Place
from tokencake_sglang.spatial.shares import CLAIM_S, LEVEL_S, UNTAGGED


def waiting(harness) -> list[str]:
    return [req.rid for req in harness.scheduler.waiting_queue]


def of(application: str, agent: str, tenant: str | None = None) -> AgentTag:
    return AgentTag(agent=agent, application=application, tenant=tenant)


def look_again(harness) -> str:
    """Something comes, so admission is attempted again; what came."""
    rid = harness.submit(prompt(6, 600), 4, of("old", "third"))
    harness.step(2)
    return rid


def older_and_younger_in_the_queue(harness, older: str | None, younger: str | None) -> list[str]:
    """Both applications take part, the older one holds most of the pool, and each asks for more.

    Returns the rid that runs, and those that wait: the older's, the younger's, the older's again.
    """
    harness.generate(prompt(1, 100), 4, of("old", "first", older))
    harness.generate(prompt(2, 100), 4, of("young", "first", younger))
    running = harness.submit(prompt(3, 1400), 200, of("old", "long", older))
    harness.step(5)
    second = harness.submit(prompt(4, 600), 4, of("old", "second", older))
    other = harness.submit(prompt(5, 600), 4, of("young", "second", younger))
    harness.step(3)
    assert waiting(harness) == [second, other]  # equal so far
    harness.at(harness.now_s + 2 * LEVEL_S)
    third = look_again(harness)
    return [running, second, other, third]


def test_the_tenant_that_holds_less_goes_first(harness):
    running, second, other, third = older_and_younger_in_the_queue(harness, "busy", "modest")
    assert waiting(harness) == [other, second, third]
    harness.run(running, second, other, third)


@pytest.mark.parametrize("tenant", [None, "same"])
def test_of_one_tenant_the_older_application_goes_first(harness, tenant):
    running, second, other, third = older_and_younger_in_the_queue(harness, tenant, tenant)
    assert waiting(harness) == [second, third, other]
    harness.run(running, second, other, third)


def test_what_a_tenant_did_not_ask_for_while_it_ran_gives_it_a_bounded_claim(harness):
    """It holds little for a long time beside one that holds much, and then asks for much as well."""
    little = harness.submit(prompt(1, 50), 300, of("old", "runs", "little"))
    much = harness.submit(prompt(2, 1000), 300, of("young", "runs", "much"))
    harness.step(3)
    harness.at(harness.now_s + 3600.0)
    asked = [
        harness.submit(prompt(10 + number, 600), 4, of(name, f"a{number}", tenant))
        for number, (name, tenant) in enumerate(
            [("old", "little"), ("old", "little"), ("young", "much"), ("young", "much")]
        )
    ]
    harness.step(3)
    assert waiting(harness) == asked
    shares = harness.planner.applications.shares
    claimed = shares.virtual_s("much", harness.now_s) - shares.virtual_s("little", harness.now_s)
    assert claimed == pytest.approx(CLAIM_S * 2048, rel=0.02)
    harness.run(little, much, *asked)


def test_when_all_is_over_no_tenant_is_kept(harness):
    rids = older_and_younger_in_the_queue(harness, "busy", "modest")
    harness.run(*rids)
    harness.at(harness.now_s + 2 * CLAIM_S)
    harness.finish_everything()
    assert not harness.planner.applications.shares._accounts


@pytest.fixture
def untagged_weight(harness, monkeypatch):
    """Sets what untagged requests weigh, as ``untagged_weight`` does, for one test."""

    def weigh(weight: float) -> None:
        monkeypatch.setitem(harness.planner.applications.shares.weights, UNTAGGED, weight)

    yield weigh
    harness.finish_everything()
    harness.step(2)
    accounts = harness.planner.applications.shares._accounts
    assert all(account.running_tokens == account.queued == 0 for account in accounts.values())
    accounts.clear()


def test_untagged_requests_that_are_a_tenant_go_first_when_agents_hold_more(
    harness, untagged_weight
):
    untagged_weight(1.0)
    running = harness.submit(prompt(3, 1400), 200, of("old", "long"))
    harness.step(5)
    agents = harness.submit(prompt(4, 600), 4, of("old", "second"))
    chat = harness.submit(prompt(5, 600), 4)
    harness.step(3)
    assert waiting(harness) == [agents, chat]  # equal so far
    harness.at(harness.now_s + 1.0)
    third = look_again(harness)
    assert waiting(harness) == [chat, agents, third]
    harness.run(running, agents, chat, third)


def test_untagged_requests_hold_nothing_once_they_have_finished_or_no_agent_is_known(
    harness, untagged_weight
):
    untagged_weight(1.0)
    shares = harness.planner.applications.shares
    agents = harness.submit(prompt(2, 100), 200, of("old", "first"))
    chat = harness.submit(prompt(5, 300), 8)
    harness.step(4)
    assert shares._accounts[UNTAGGED].running_tokens >= 300
    while chat not in harness.finished:
        harness.step(1)
    harness.step(1)
    assert shares._accounts[UNTAGGED].running_tokens == 0
    harness.run(agents)
    chat = harness.submit(prompt(6, 300), 200)
    harness.step(4)
    assert shares._accounts[UNTAGGED].running_tokens >= 300
    harness.at(harness.now_s + 2 * harness.planner.table.agent_timeout_s)
    harness.step(1)
    assert not len(harness.planner.table)
    assert shares._accounts[UNTAGGED].running_tokens == 0
    assert not harness.planner.applications._seen_running
    harness.run(chat)


def test_agents_go_before_untagged_requests_that_hold_more(harness, untagged_weight):
    untagged_weight(1.0)
    harness.generate(prompt(2, 100), 4, of("old", "first"))
    running = harness.submit(prompt(3, 1400), 200)
    harness.step(5)
    chat = harness.submit(prompt(5, 600), 4)
    agents = harness.submit(prompt(4, 600), 4, of("old", "second"))
    harness.step(3)
    harness.at(harness.now_s + 1.0)
    third = look_again(harness)
    assert waiting(harness) == [agents, chat, third], "the third by turns"
    harness.run(running, agents, chat, third)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_both_hold_the_pool_in_proportion_while_both_ask_for_it(harness, untagged_weight, weight):
    """Three requests fit at a time, each for 0.4 s; whoever asked first makes no difference."""
    untagged_weight(weight)
    harness.generate(prompt(2, 100), 4, of("old", "first"))
    agents = [harness.submit(prompt(100 + n, 560), 40, of("old", f"a{n}")) for n in range(24)]
    chat = [harness.submit(prompt(200 + n, 560), 40) for n in range(24)]
    held = {True: 0.0, False: 0.0}
    harness.step()
    while set(agents) & set(waiting(harness)) and set(chat) & set(waiting(harness)):
        harness.at(harness.now_s + 0.01)
        harness.step()
        for req in harness.scheduler.running_batch.reqs:
            held[req.rid in chat] += len(req.origin_input_ids) + len(req.output_ids)
    assert held[True] / held[False] == pytest.approx(weight, rel=0.25)
    harness.run(*agents, *chat)


def test_an_untagged_prompt_in_chunks_is_charged_once(harness, untagged_weight):
    untagged_weight(1.0)
    harness.generate(prompt(2, 100), 4, of("old", "first"))  # else nobody is there to share with
    chat = harness.submit(prompt(1, 1500), 4)
    harness.step(2)
    assert harness.scheduler.chunked_req is not None
    account = harness.planner.applications.shares._accounts[UNTAGGED]
    assert (account.running_tokens, account.queued) == (1500, 0)
    harness.run(chat)


@pytest.fixture
def chat_behind_agents(harness, monkeypatch) -> tuple[str, str, str]:
    """Of untagged requests that are no tenant, with an ``untagged_weight`` of 0."""
    monkeypatch.delitem(harness.planner.applications.shares.weights, UNTAGGED)
    running = harness.submit(prompt(3, 1400), 200, of("old", "long"))
    harness.step(5)
    agents = harness.submit(prompt(4, 600), 4, of("old", "second"))
    chat = harness.submit(prompt(5, 600), 4)
    harness.step(3)
    assert waiting(harness) == [agents, chat]
    return running, agents, chat


def test_chat_that_has_waited_for_half_its_target_goes_first(harness, chat_behind_agents):
    running, agents, chat = chat_behind_agents
    harness.at(harness.now_s + 10.0)
    third = look_again(harness)
    assert waiting(harness) == [chat, agents, third]
    harness.run(running, agents, chat, third)


def test_until_then_it_keeps_its_place(harness, chat_behind_agents):
    running, agents, chat = chat_behind_agents
    harness.at(harness.now_s + 9.0)
    third = look_again(harness)
    assert waiting(harness) == [agents, chat, third]
    harness.run(running, agents, chat, third)


def test_of_one_application_the_step_that_had_the_longest_way_to_go_in_another_goes_first(harness):
    """Nobody declares a graph: the first application of the kind shows it."""
    for number, (name, then_s) in enumerate({"plan": 5.0, "search": 30.0, "summary": 2.0}.items()):
        harness.generate(prompt(10 + number, 100), 4, of("seen", name))
        harness.at(harness.now_s + then_s)
    harness.send(ApplicationFinish(application="seen"))
    harness.step()
    harness.at(harness.now_s + SETTLE_S)
    running = harness.submit(prompt(3, 1400), 200, of("other", "long"))
    harness.step(5)
    summary = harness.submit(prompt(4, 700), 4, of("next", "summary"))
    search = harness.submit(prompt(5, 700), 4, of("next", "search"))
    harness.step(3)
    remaining_s = harness.planner.applications.turns.paths.remaining_s
    assert remaining_s(Place("default", "plan")) is None  # there was nobody else yet
    assert remaining_s(Place("default", "search")) == 32.0
    assert remaining_s(Place("default", "summary")) == 2.0
    assert waiting(harness) == [search, summary]
    harness.run(running, search, summary)


def test_of_a_declared_graph_the_node_with_the_longest_way_left_goes_first(harness):
    """Even where others of its kind, by which it would be learnt, went another way."""
    nodes = {"plan": (), "note": ("plan",), "search": ("plan",), "report": ("search", "note")}
    times_s = {"plan": 1.0, "note": 2.0, "search": 50.0, "report": 3.0}
    graph = tuple(
        GraphNode(name=name, after=after, expected_s=times_s[name]) for name, after in nodes.items()
    )
    harness.send(ApplicationStart(application="next", graph=graph))
    harness.generate(prompt(1, 100), 4, of("next", "plan"))
    running = harness.submit(prompt(3, 1400), 200, of("other", "long"))
    harness.step(5)
    note = harness.submit(prompt(4, 700), 4, of("next", "note"))
    search = harness.submit(prompt(5, 700), 4, of("next", "search"))
    harness.step(3)
    applications = harness.planner.applications
    assert waiting(harness) == [search, note]
    ways_s = {
        agent.key.agent: applications.turns.path_of(agent)[1]
        for agent in applications.agents_in("next")
        if agent.rids
    }
    assert ways_s == {"note": 5.0, "search": 53.0}
    harness.run(running, search, note)
    harness.send(ApplicationFinish(application="next"))
    harness.step()
    assert not applications.turns._graphs


def test_a_graph_without_times_yields_to_what_was_learnt(harness):
    applications = harness.planner.applications
    nodes = (GraphNode(name="a"), GraphNode(name="b", after=("a",)))
    harness.send(ApplicationStart(application="next", graph=nodes))
    running = harness.submit(prompt(3, 1400), 200, of("other", "long"))
    harness.step(5)
    rids = [harness.submit(prompt(4 + i, 700), 4, of("next", name)) for i, name in enumerate("ab")]
    harness.step(3)
    first = applications.agents_in("next")[0]
    assert applications.turns.path_of(first)[1] == 2 * NODE_S
    applications.turns.paths._learn({Place("default", "a"): 0.0}, 7.0)
    assert applications.turns.path_of(first)[1] == 7.0
    harness.run(running, *rids)


def test_without_paths_not_even_a_declared_graph_counts(harness, monkeypatch):
    """``--tokencake-without paths``: SGLang's order stays within an application."""
    applications = harness.planner.applications
    monkeypatch.setattr(applications.turns, "knows_paths", False)
    times_s = {"note": 1.0, "search": 50.0}
    graph = tuple(GraphNode(name=name, expected_s=seconds) for name, seconds in times_s.items())
    harness.send(ApplicationStart(application="next", graph=graph))
    running = harness.submit(prompt(3, 1400), 200, of("other", "long"))
    harness.step(5)
    note = harness.submit(prompt(4, 700), 4, of("next", "note"))
    search = harness.submit(prompt(5, 700), 4, of("next", "search"))
    harness.step(3)
    for agent in applications.agents_in("next"):
        assert applications.turns.path_of(agent) == (agent.last_event_s, None)
    assert waiting(harness) == [note, search]
    harness.run(running, note, search)
