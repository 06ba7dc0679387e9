"""Single transitions of the agent table, one behaviour each."""

import time

import pytest

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.events import (
    AgentFinish,
    ApplicationFinish,
    CallFinish,
    CallProgress,
    CallStart,
    DurationsKnown,
    RequestBegin,
    RequestEnd,
    Tick,
)
from tokencake_sglang.agents.identity import AgentKey, AgentTag
from tokencake_sglang.agents.table import (
    CLOSED_CALLS_KEPT,
    LONGEST_CALL_S,
    OPEN_CALLS_MAX,
    AgentState,
    AgentTable,
    Change,
    Progress,
)

CODER = AgentTag(agent="coder", application="run")
KEY = AgentKey("run", "coder")


@pytest.fixture
def table():
    return AgentTable(call_timeout_s=10.0, agent_timeout_s=100.0, max_agents=3)


def begin(table, rid="r", tag=CODER, now_s=0.0):
    return table.apply(RequestBegin(rid=rid, tag=tag), now_s)


def end(table, rid="r", now_s=0.0):
    return table.apply(RequestEnd(rid=rid), now_s)


def start(table, call_id="c", now_s=0.0, **fields):
    event = CallStart(
        agent="coder", application="run", call_id=call_id, **{"tool": "test", **fields}
    )
    return table.apply(event, now_s)


def finish(table, call_id="c", now_s=0.0):
    return table.apply(CallFinish(agent="coder", application="run", call_id=call_id), now_s)


def progress(table, call_id="c", now_s=0.0, **way):
    event = CallProgress(agent="coder", application="run", call_id=call_id, **way)
    return table.apply(event, now_s)


RAG = ("query", "embed", "generate")


def changes(transitions):
    return [transition.change for transition in transitions]


def refusal(function, *args, **kwargs):
    with pytest.raises(AgentError) as caught:
        function(*args, **kwargs)
    return caught.value.code, caught.value.message


def test_an_agent_goes_from_active_to_stalled_to_idle_to_active(table):
    states = []
    for step in (begin, start, end, finish, lambda t: begin(t, rid="r2")):
        step(table)
        states.append(table.get(KEY).state)
    assert states == ["active", "active", "stalled", "idle", "active"]


def test_the_next_request_closes_calls_whose_finish_was_lost(table):
    begin(table), end(table), start(table)
    assert changes(begin(table, rid="r2")) == [Change.CALL_FINISHED, Change.REQUEST_BEGAN]
    assert table.open_calls == 0


def test_a_finish_that_comes_after_the_next_request_changes_nothing(table):
    begin(table), end(table), start(table), begin(table, rid="r2")
    assert finish(table) == []


def test_an_early_call_start_stalls_the_agent_when_its_request_ends(table):
    begin(table), start(table)
    assert table.get(KEY).state is AgentState.ACTIVE
    end(table)
    assert table.get(KEY).state is AgentState.STALLED


def test_a_call_lapses_at_its_deadline_and_not_before(table):
    begin(table), end(table), start(table, now_s=1.0)
    assert table.apply(Tick(), 10.9) == []
    assert changes(table.apply(Tick(), 11.0)) == [Change.CALL_LAPSED]


def test_a_long_prediction_moves_the_deadline_to_four_times_its_length(table):
    begin(table), end(table)
    (transition,) = start(table, predicted_s=100.0)
    assert transition.call.deadline_s == 400.0


def test_no_prediction_keeps_a_call_open_for_more_than_a_week(table):
    begin(table), end(table)
    (transition,) = start(table, predicted_s=LONGEST_CALL_S)
    assert transition.call.deadline_s == LONGEST_CALL_S


def test_a_request_id_used_by_a_second_agent_ends_the_request_of_the_first(table):
    begin(table)
    assert changes(begin(table, tag=AgentTag(agent="critic", application="run"))) == [
        Change.REQUEST_ENDED,
        Change.REQUEST_BEGAN,
    ]
    assert table.get(KEY).state is AgentState.IDLE


def test_the_same_request_twice_changes_nothing(table):
    begin(table)
    assert begin(table) == []


def test_a_request_revives_a_finished_agent(table):
    begin(table), end(table)
    table.apply(AgentFinish(agent="coder", application="run"), 0.0)
    begin(table, rid="r2")
    assert table.get(KEY).state is AgentState.ACTIVE


def test_an_application_finish_finishes_its_agents_in_order_of_first_sight(table):
    for name in ("b", "a"):
        begin(table, rid=name, tag=AgentTag(agent=name, application="run"))
    transitions = table.apply(ApplicationFinish(application="run"), 0.0)
    assert [transition.agent.key.agent for transition in transitions] == ["b", "a"]
    assert table.apply(ApplicationFinish(application="run"), 0.0) == []


def test_the_quietest_agents_are_forgotten_first_above_the_bound(table):
    for index in range(5):
        begin(table, rid=f"r{index}", tag=AgentTag(agent=f"a{index}"), now_s=index)
        end(table, rid=f"r{index}", now_s=index)
    table.apply(Tick(), 5.0)
    assert [agent.key.agent for agent in table] == ["a2", "a3", "a4"]


def test_a_busy_agent_is_kept_above_the_bound_and_past_its_time(table):
    begin(table)
    table.apply(Tick(), 1e6)
    assert table.get(KEY) is not None


def test_agents_of_an_application_share_its_name(table):
    for number in range(2):
        # Names come out of messages, as strings of their own.
        application = b"application".decode()
        tag = AgentTag(agent=f"coder-{number}", application=application)
        table.apply(RequestBegin(rid=f"rid-{number}", tag=tag), 0.0)
    first, second = table.of_application("application")
    assert first.key.application is second.key.application


def test_closed_calls_are_remembered_up_to_a_bound(table):
    begin(table), end(table)
    for index in range(CLOSED_CALLS_KEPT + 5):
        start(table, f"c{index}"), finish(table, f"c{index}")
    assert len(table.get(KEY).closed_calls) == CLOSED_CALLS_KEPT


def test_open_calls_are_bounded(table):
    begin(table)
    for index in range(OPEN_CALLS_MAX):
        start(table, f"c{index}")
    assert refusal(start, table, "one more") == (
        ErrorCode.UNAVAILABLE,
        "call_id: agent 'coder' has 256 open calls, at most 256 are kept; finish some first",
    )


# -- progress ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [{"fraction": 0.25}, {"remaining_s": 8.0}])
def test_progress_says_what_was_reported_and_when(table, way):
    begin(table), end(table), start(table, now_s=1.0)
    (transition,) = progress(table, now_s=3.0, **way)
    assert (transition.change, transition.ended_stage) == (Change.CALL_PROGRESSED, None)
    assert transition.call.progress == Progress(3.0, **way)
    progress(table, now_s=4.0, fraction=0.5)
    assert transition.call.progress == Progress(4.0, fraction=0.5), "the latest report counts"


def test_the_same_report_later_names_another_end(table):
    begin(table), end(table), start(table)
    assert changes(progress(table, now_s=1.0, remaining_s=5.0)) == [Change.CALL_PROGRESSED]
    assert progress(table, now_s=1.0, remaining_s=5.0) == []
    (transition,) = progress(table, now_s=2.0, remaining_s=5.0)
    assert transition.call.progress.at_s == 2.0


def test_a_stage_that_begins_ends_the_one_before_it(table):
    begin(table), end(table), start(table, now_s=1.0, stages=RAG)
    (first,) = progress(table, now_s=3.0, stage="embed")
    (second,) = progress(table, now_s=7.0, stage="generate")
    assert changes([first, second]) == [Change.CALL_PROGRESSED] * 2
    assert (first.ended_stage, second.ended_stage) == (("query", 2.0), ("embed", 4.0))
    call = table.get(KEY).open_call("c")
    assert (call.stages_finished, call.stage_started_s) == (2, 7.0)


def test_of_stages_that_were_skipped_no_length_is_known(table):
    begin(table), end(table), start(table, stages=RAG)
    (skipping,) = progress(table, now_s=3.0, stage="generate")
    assert (skipping.change, skipping.ended_stage) == (Change.CALL_PROGRESSED, None)
    (closing,) = finish(table, now_s=5.0)
    assert closing.ended_stage == ("generate", 2.0)


def test_stages_only_go_forward(table):
    begin(table), end(table), start(table, stages=RAG)
    assert progress(table, now_s=1.0, stage="query") == [], "it began with the call"
    progress(table, now_s=2.0, stage="embed")
    for stage in ("embed", "query"):
        assert progress(table, now_s=3.0, stage=stage) == []
    assert table.get(KEY).open_call("c").stage_started_s == 2.0


@pytest.mark.parametrize("close", [finish, lambda t, now_s: begin(t, rid="r2", now_s=now_s)])
def test_a_call_that_ends_in_its_last_stage_ends_that_stage(table, close):
    begin(table), end(table), start(table, stages=("query", "embed"))
    progress(table, now_s=2.0, stage="embed")
    transition = close(table, now_s=6.0)[0]
    assert (transition.change, transition.ended_stage) == (
        Change.CALL_FINISHED,
        ("embed", 4.0),
    )


def test_a_call_that_ends_before_its_last_stage_ends_none(table):
    begin(table), end(table), start(table, stages=RAG)
    progress(table, now_s=2.0, stage="embed")
    assert finish(table, now_s=6.0)[0].ended_stage is None


def test_a_call_that_lapses_ends_no_stage(table):
    begin(table), end(table), start(table, stages=("only",))
    (lapsed,) = table.apply(Tick(), 10.0)
    assert (lapsed.change, lapsed.ended_stage) == (Change.CALL_LAPSED, None)


def test_progress_of_a_closed_call_changes_nothing(table):
    begin(table), end(table), start(table, stages=RAG), finish(table)
    assert progress(table, fraction=0.5) == []
    assert progress(table, stage="embed") == []


def test_a_call_that_reports_is_not_given_up_as_one_that_is_silent(table):
    begin(table), end(table), start(table, stages=RAG)
    progress(table, now_s=8.0, fraction=0.5)
    assert table.apply(Tick(), 17.9) == []
    progress(table, now_s=17.9, remaining_s=30.0)
    assert table.apply(Tick(), 137.8) == [], "four times what is left"
    assert changes(table.apply(Tick(), 137.9)) == [Change.CALL_LAPSED]


def test_no_report_keeps_a_call_open_for_more_than_a_week(table):
    begin(table), end(table), start(table)
    (transition,) = progress(table, now_s=5.0, remaining_s=LONGEST_CALL_S)
    assert transition.call.deadline_s == LONGEST_CALL_S


def test_a_repeat_moves_no_deadline(table):
    begin(table), end(table), start(table, stages=RAG)
    progress(table, now_s=9.0, stage="query")
    assert changes(table.apply(Tick(), 10.0)) == [Change.CALL_LAPSED]


def test_what_is_known_of_durations_concerns_no_agent(table):
    assert table.apply(DurationsKnown(state=b"anything"), 0.0) == []


# -- what each refusal says -------------------------------------------------------------------


def test_a_signal_of_an_agent_without_request_says_what_to_do(table):
    assert refusal(start, table) == (
        ErrorCode.UNKNOWN_AGENT,
        (
            "agent: 'coder' of application 'run' has sent no tagged request; tag its requests with "
            "the same application and agent first"
        ),
    )


def test_a_finish_of_an_unknown_call_lists_the_open_ones(table):
    begin(table), start(table, "c1")
    assert refusal(finish, table, "c2") == (
        ErrorCode.UNKNOWN_CALL,
        "call_id: agent 'coder' has no call 'c2'; open calls are ['c1']",
    )


def test_a_call_started_twice_with_other_values_is_a_contradiction(table):
    begin(table), start(table, predicted_s=1.0)
    assert refusal(start, table, predicted_s=2.0) == (
        ErrorCode.CONTRADICTION,
        (
            "call_id: 'c' was already started with other values (tool, predicted_s, "
            "arguments_digest, arguments_size, stages = ('test', 1.0, None, None, ())); use a new call_id"
        ),
    )


def test_a_call_of_a_finished_agent_says_how_it_lives_on(table):
    begin(table), end(table)
    table.apply(AgentFinish(agent="coder", application="run"), 0.0)
    assert refusal(start, table) == (
        ErrorCode.AGENT_FINISHED,
        "agent: 'coder' has finished; a new request would revive it",
    )


def test_the_finish_of_an_unknown_application_is_refused(table):
    assert refusal(table.apply, ApplicationFinish(application="run"), 0.0) == (
        ErrorCode.UNKNOWN_APPLICATION,
        "application: no agent of 'run' has sent a tagged request",
    )


def test_progress_of_an_unknown_call_is_refused_as_its_finish_is(table):
    assert refusal(progress, table, fraction=0.5)[0] is ErrorCode.UNKNOWN_AGENT
    begin(table), start(table, "c1")
    assert refusal(progress, table, "c2", fraction=0.5) == (
        ErrorCode.UNKNOWN_CALL,
        "call_id: agent 'coder' has no call 'c2'; open calls are ['c1']",
    )


@pytest.mark.parametrize(
    ("declared", "said"),
    [(RAG, "declared are query, embed, generate"), ((), "none was declared")],
)
def test_a_stage_that_was_not_declared_is_refused_with_those_that_were(table, declared, said):
    begin(table), start(table, stages=declared)
    assert refusal(progress, table, stage="rank") == (
        ErrorCode.CONTRADICTION,
        f"stage: call 'c' has no stage 'rank'; {said} (call_start.stages)",
    )
    assert table.get(KEY).open_call("c").stages_finished == 0


def test_a_call_started_again_with_other_stages_is_a_contradiction(table):
    begin(table), start(table, stages=RAG)
    assert start(table, stages=RAG) == []
    assert refusal(start, table, stages=RAG[:2])[0] is ErrorCode.CONTRADICTION


def test_a_crowd_of_one_application_is_forgotten_in_no_time():
    """Each of them once looked through all others: of so many, for seconds."""
    table = AgentTable(call_timeout_s=10.0, agent_timeout_s=100.0)
    for number in range(20_000):
        begin(table, str(number), AgentTag(agent=f"a{number}", application="run"))
        table.apply(RequestEnd(rid=str(number)), 0.0)
    began_s = time.process_time()
    assert len(table.apply(Tick(), 200.0)) == 20_000
    assert time.process_time() - began_s < 1.0
