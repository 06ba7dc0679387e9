"""The table of agents under arbitrary events: lost, doubled, late and contradictory ones too."""

import copy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokencake_sglang.agents.errors import AgentError
from tokencake_sglang.agents.events import (
    AgentFinish,
    ApplicationFinish,
    ApplicationStart,
    CallFinish,
    CallProgress,
    CallStart,
    GraphNode,
    RequestBegin,
    RequestEnd,
    Tick,
)
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.agents.table import CLOSED_CALLS_KEPT, AgentState, AgentTable, Change

CALL_TIMEOUT_S = 10.0
AGENT_TIMEOUT_S = 50.0
MAX_AGENTS = 4

AGENTS = st.sampled_from(["a", "b", "c"])
APPLICATIONS = st.sampled_from(["x", "y", None])
CALL_IDS = st.sampled_from(["c0", "c1", "c2"])
RIDS = st.sampled_from([f"r{i}" for i in range(5)])
PAUSES = st.sampled_from([0.0, 0.1, 5.0, 20.0, 60.0])
PREDICTIONS = st.sampled_from([None, 0.0, 1.0, 4.0])
STAGES = st.sampled_from([(), ("s0",), ("s0", "s1", "s2")])
REMAINDERS_S = (0.0, 3.0, 100.0)
WAYS = st.one_of(
    st.builds(dict, fraction=st.sampled_from([0.0, 0.5, 1.0])),
    st.builds(dict, remaining_s=st.sampled_from(REMAINDERS_S)),
    st.builds(dict, stage=st.sampled_from(["s0", "s1", "s2"])),
)

TAGS = st.builds(
    AgentTag,
    agent=AGENTS,
    application=APPLICATIONS,
    agent_type=st.sampled_from(["default", "critic"]),
    critical=st.booleans(),
)
EVENTS = st.one_of(
    st.builds(RequestBegin, rid=RIDS, tag=TAGS),
    st.builds(RequestEnd, rid=RIDS),
    st.builds(
        CallStart,
        agent=AGENTS,
        application=APPLICATIONS,
        call_id=CALL_IDS,
        tool=st.sampled_from(["search", "test"]),
        predicted_s=PREDICTIONS,
        stages=STAGES,
    ),
    st.builds(
        lambda way, **call: CallProgress(**way, **call),
        WAYS,
        agent=AGENTS,
        application=APPLICATIONS,
        call_id=CALL_IDS,
    ),
    st.builds(CallFinish, agent=AGENTS, application=APPLICATIONS, call_id=CALL_IDS),
    st.builds(AgentFinish, agent=AGENTS, application=APPLICATIONS),
    st.builds(
        ApplicationStart,
        application=st.sampled_from(["x", "y", "a"]),
        graph=st.sampled_from([(GraphNode(name="a"),), (GraphNode(name="b", expected_s=2.0),)]),
    ),
    st.builds(
        ApplicationStart,
        application=st.sampled_from(["x", "y", "a"]),
        expected_output_tokens=st.sampled_from([10, 1000]),
    ),
    st.builds(ApplicationFinish, application=st.sampled_from(["x", "y", "a"])),
    st.builds(Tick),
)


def new_table():
    return AgentTable(
        call_timeout_s=CALL_TIMEOUT_S, agent_timeout_s=AGENT_TIMEOUT_S, max_agents=MAX_AGENTS
    )


def state(table):
    """Everything that a decision could be made from; the order of agents included."""
    values = {name: copy.deepcopy(value) for name, value in vars(table).items() if name != "now_s"}
    return values | {"_declared": vars(values["_declared"])}


class TableMachine(RuleBasedStateMachine):
    """``front`` sees every event; ``rank`` only those that changed something, as a rank does."""

    def __init__(self):
        super().__init__()
        self.front, self.rank = new_table(), new_table()
        self.now_s = 0.0
        self.outstanding = {}
        self.last = None

    @rule(pause_s=PAUSES, event=EVENTS)
    def happen(self, pause_s, event):
        self.now_s += pause_s
        before = state(self.front)
        declares = False
        if isinstance(event, ApplicationStart):
            declares = self.front.declared(event.application) != event
        elif isinstance(event, ApplicationFinish):
            declares = self.front.declared(event.application) is not None
        try:
            transitions = self.front.apply(event, self.now_s)
        except AgentError:
            assert state(self.front) == before, "a refused event changed something"
            return
        if transitions or declares or isinstance(event, Tick):
            answered = self.rank.apply(event, self.now_s)
            assert [(t.agent.key, t.change, t.call, t.ended_stage) for t in answered] == [
                (t.agent.key, t.change, t.call, t.ended_stage) for t in transitions
            ]
        else:
            assert state(self.front) == before, "an event without transitions changed something"
        self._model(event)
        self._check(event, transitions)
        self.last = None if isinstance(event, Tick) else event

    def _model(self, event):
        if isinstance(event, RequestBegin):
            self.outstanding[event.rid] = event.tag.key
        elif isinstance(event, RequestEnd):
            self.outstanding.pop(event.rid, None)

    def _check(self, event, transitions):
        for transition in transitions:
            call = transition.call
            if transition.ended_stage is not None:
                name, length_s = transition.ended_stage
                assert name in call.stages and length_s >= 0.0
            if transition.change is Change.CALL_LAPSED:
                assert call.deadline_s <= self.now_s
            if transition.change is Change.AGENT_FORGOTTEN:
                assert not transition.agent.rids and not transition.agent.calls
        if isinstance(event, Tick):
            for agent in self.front:
                assert all(call.deadline_s > self.now_s for call in agent.calls)
                quiet = not agent.rids and not agent.calls
                assert not quiet or agent.last_event_s + AGENT_TIMEOUT_S > self.now_s
            quiet = [agent for agent in self.front if not agent.rids and not agent.calls]
            assert len(self.front) <= MAX_AGENTS or not quiet
            for application, (_, look_s) in self.front._declared._declared.items():
                assert self.front.of_application(application) or look_s > self.now_s

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat_the_last_event(self):
        before = state(self.front)
        try:
            transitions = self.front.apply(self.last, self.now_s)
        except AgentError:
            transitions = []
        assert transitions == []
        assert state(self.front) == before

    @invariant()
    def a_rank_that_saw_only_the_changes_agrees(self):
        assert state(self.rank) == state(self.front)

    @invariant()
    def no_request_is_lost(self):
        known = {rid: self.front.by_rid(rid).key for rid in self.outstanding}
        assert known == self.outstanding
        assert self.outstanding == {rid: a.key for a in self.front for rid in a.rids}

    @invariant()
    def every_open_call_has_an_end(self):
        for agent in self.front:
            for call in agent.calls:
                longest_s = max(CALL_TIMEOUT_S, 4 * (call.predicted_s or 0.0))
                if call.progress is None and not call.stages_finished:
                    assert call.deadline_s <= call.started_s + longest_s
                else:
                    longest_s = max(longest_s, 4 * max(REMAINDERS_S))
                    assert call.deadline_s <= agent.last_event_s + longest_s

    @invariant()
    def every_stage_began_after_the_call_and_one_is_left(self):
        for agent in self.front:
            for call in agent.calls:
                assert call.started_s <= call.stage_started_s <= self.now_s
                assert 0 <= call.stages_finished <= max(len(call.stages) - 1, 0)

    @invariant()
    def the_counts_are_right(self):
        assert self.front.open_calls == sum(1 for agent in self.front if agent.calls)
        assert all(len(agent.closed_calls) <= CLOSED_CALLS_KEPT for agent in self.front)

    @invariant()
    def a_finished_agent_has_no_open_call(self):
        for agent in self.front:
            assert not (agent.state is AgentState.FINISHED and agent.calls)


TestTable = TableMachine.TestCase
TestTable.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
