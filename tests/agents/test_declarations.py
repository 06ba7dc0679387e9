"""What applications declare: kept while there is anybody whom it is about."""

import pytest

from tokencake_sglang.agents import declarations
from tokencake_sglang.agents.events import (
    AgentFinish,
    ApplicationFinish,
    ApplicationStart,
    GraphNode,
    RequestBegin,
    RequestEnd,
    Tick,
)
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.agents.table import AgentTable

PLAN, CODE = GraphNode(name="plan"), GraphNode(name="code", after=("plan",))
CODER = AgentTag(agent="coder", application="run")


@pytest.fixture
def table():
    return AgentTable(call_timeout_s=10.0, agent_timeout_s=100.0)


def declare(table, *nodes, application="run", now_s=0.0):
    return table.apply(ApplicationStart(application=application, graph=nodes), now_s)


def graph_of(table, application):
    declared = table.declared(application)
    return None if declared is None else declared.graph


def one_turn(table, now_s=0.0):
    table.apply(RequestBegin(rid="r", tag=CODER), now_s)
    table.apply(RequestEnd(rid="r"), now_s)


def test_a_graph_may_come_before_any_agent_does(table):
    assert declare(table, PLAN, CODE) == []
    assert graph_of(table, "run") == (PLAN, CODE)
    assert graph_of(table, "other") is None


def test_the_latest_counts(table):
    declare(table, PLAN)
    declare(table, PLAN, CODE)
    assert graph_of(table, "run") == (PLAN, CODE)


def test_the_latest_counts_as_a_whole(table):
    declare(table, PLAN)
    table.apply(ApplicationStart(application="run", expected_output_tokens=9000), 0.0)
    assert table.declared("run").expected_output_tokens == 9000
    assert graph_of(table, "run") is None


def test_one_whose_application_never_comes_is_dropped(table):
    declare(table, PLAN)
    table.apply(Tick(), 99.0)
    assert graph_of(table, "run") is not None
    table.apply(Tick(), 100.0)
    assert graph_of(table, "run") is None


def test_it_stays_while_an_agent_is_known_and_goes_with_the_last(table):
    declare(table, PLAN)
    one_turn(table, now_s=80.0)
    table.apply(Tick(), 150.0)
    assert graph_of(table, "run") is not None
    table.apply(Tick(), 180.0)
    assert graph_of(table, "run") is None


@pytest.mark.parametrize("all_agents_had_finished", [False, True])
def test_it_ends_with_its_application(table, all_agents_had_finished):
    declare(table, PLAN)
    one_turn(table)
    if all_agents_had_finished:
        table.apply(AgentFinish(agent=CODER.agent, application="run"), 1.0)
    assert graph_of(table, "run") is not None
    transitions = table.apply(ApplicationFinish(application="run"), 2.0)
    assert (transitions == []) is all_agents_had_finished
    assert graph_of(table, "run") is None


def test_memory_is_bounded(table, monkeypatch):
    monkeypatch.setattr(declarations, "NODES_KEPT", 4)
    for number in range(3):
        declare(table, PLAN, CODE, application=f"run-{number}")
    assert [graph_of(table, f"run-{n}") is not None for n in range(3)] == [False, True, True]


def test_one_that_is_declared_over_and_over_takes_the_room_of_one(table, monkeypatch):
    monkeypatch.setattr(declarations, "NODES_KEPT", 4)
    declare(table, PLAN, CODE, application="other")
    for _ in range(5):
        declare(table, PLAN)
        declare(table, PLAN, CODE)
    assert graph_of(table, "run") == (PLAN, CODE)
    assert graph_of(table, "other") == (PLAN, CODE)


def test_one_without_a_graph_takes_the_room_of_a_node(table, monkeypatch):
    monkeypatch.setattr(declarations, "NODES_KEPT", 2)
    for number in range(3):
        declared = ApplicationStart(application=f"run-{number}", expected_output_tokens=1)
        table.apply(declared, 0.0)
    assert [table.declared(f"run-{n}") is not None for n in range(3)] == [False, True, True]
