"""When agents come back: promises, medians that recede, progress and stages."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tokencake_sglang.agents.events import CallFinish, CallProgress, CallStart, RequestBegin
from tokencake_sglang.agents.identity import AgentKey, AgentTag
from tokencake_sglang.agents.table import AgentTable, Change
from tokencake_sglang.temporal.duration import CallFeatures, DurationModel
from tokencake_sglang.temporal.returns import REVISION_S, REVISION_SHARE, Return, Returns, learn
from tokencake_sglang.temporal.upload import UploadTiming

TAG = AgentTag(agent="a", application="app", agent_type="coder")
CRITICAL = AgentTag(agent="a", application="app", agent_type="coder", critical=True)
KEY: AgentKey = TAG.key
WHO = {"agent": "a", "application": "app"}


def times(expected: Return) -> Return:
    """Without the call that it speaks of."""
    return replace(expected, call=None)


class Told:
    """An agent table and what is made of its transitions, as the main process and a rank do it."""

    def __init__(self, durations: DurationModel | None = None, tag: AgentTag = TAG) -> None:
        self.table = AgentTable(call_timeout_s=600.0, agent_timeout_s=3600.0)
        self.returns = Returns(durations or DurationModel(1.0), lambda agent: agent.critical)
        self.apply(0.0, RequestBegin(rid="r", tag=tag))

    def apply(self, now_s: float, event) -> None:
        for transition in self.table.apply(event, now_s):
            learn(self.returns.durations, transition, now_s)
            agent, call = transition.agent, transition.call
            match transition.change:
                case Change.CALL_STARTED | Change.CALL_PROGRESSED:
                    self.returns.expect(agent, call, now_s)
                case Change.CALL_FINISHED | Change.CALL_LAPSED:
                    self.returns.call_over(agent, call)

    def start(self, now_s: float, call_id: str = "c", **values) -> None:
        self.apply(now_s, CallStart(**WHO, call_id=call_id, tool="pytest", **values))

    def progress(self, now_s: float, **values) -> None:
        self.apply(now_s, CallProgress(**WHO, call_id="c", **values))

    def revise(self, now_s: float) -> Return:
        self.returns.revise(self.table.get(KEY), now_s)
        return self.expected()

    def expected(self) -> Return:
        expected = self.returns.of(KEY)
        assert expected is not None
        return expected


def test_the_callers_number_is_taken_at_its_word():
    told = Told()
    told.start(10.0, predicted_s=30.0)
    assert times(told.expected()) == Return(40.0, 10.0, promised=True)
    assert told.expected().seconds_left(25.0) == 15.0


def test_a_broken_promise_recedes():
    told = Told()
    told.start(0.0, predicted_s=10.0)
    assert told.expected().seconds_left(13.0) == 3.0, "as long again as it is late"
    rests_s = []
    for now_s in (20.0, 100.0, 500.0):
        late = told.revise(now_s)
        assert not late.promised
        rests_s.append(late.seconds_left(now_s))
    assert 0.0 < rests_s[0] < rests_s[1] < rests_s[2]


def test_a_median_stays_as_far_away_until_it_is_revised():
    told = Told()
    told.start(0.0)
    first = told.expected()
    assert not first.promised
    assert first.seconds_left(0.0) == first.seconds_left(50.0) == first.at_s


def test_history_is_believed_before_the_default():
    durations = DurationModel(1.0)
    for _ in range(50):
        durations.observe(CallFeatures("pytest", "coder", "app"), 20.0)
    told = Told(durations)
    told.start(0.0)
    assert math.isclose(told.expected().at_s, 20.0, rel_tol=0.06)


def test_a_finished_call_is_learnt_from():
    told = Told()
    for n in range(20):
        told.start(100.0 * n, f"c{n}")
        told.apply(100.0 * n + 50.0, CallFinish(**WHO, call_id=f"c{n}"))
    assert told.returns.of(KEY) is None
    told.start(5000.0)
    assert math.isclose(told.expected().at_s - 5000.0, 50.0, rel_tol=0.1)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"arguments_digest": "ls"}, {"arguments_digest": "make"}),
        ({"arguments_size": 100}, {"arguments_size": 9000}),
    ],
)
def test_calls_are_told_apart_by_what_is_said_of_their_arguments(short, long):
    told = Told()
    now_s = 0.0
    for n in range(30):
        for values, seconds in ((short, 1.0), (long, 100.0)):
            call_id = f"{seconds} {n}"
            told.start(now_s, call_id, **values)
            now_s += seconds
            told.apply(now_s, CallFinish(**WHO, call_id=call_id))
    told.start(now_s, "short", **short)
    assert told.expected().seconds_left(now_s) == pytest.approx(1.0, rel=0.3)
    told.start(now_s, "long", **long)
    assert told.expected().seconds_left(now_s) == pytest.approx(100.0, rel=0.3)


def test_the_last_of_several_calls_counts():
    told = Told()
    told.start(0.0, "short", predicted_s=5.0)
    told.start(1.0, "long", predicted_s=50.0)
    assert told.expected().at_s == 51.0
    told.apply(2.0, CallFinish(**WHO, call_id="long"))
    assert told.expected().at_s == 5.0


def test_a_new_estimate_replaces_the_first():
    told = Told()
    told.start(0.0, predicted_s=100.0)
    told.progress(10.0, remaining_s=5.0)
    assert times(told.expected()) == Return(15.0, 10.0, promised=True)


def test_a_fraction_says_how_much_is_to_come():
    told = Told()
    told.start(0.0, predicted_s=10.0)
    told.progress(30.0, fraction=0.5)
    assert math.isclose(told.expected().at_s, 60.0, rel_tol=0.15)


def test_stages_to_come_are_expected_one_by_one():
    durations = DurationModel(1.0)
    told = Told(durations)
    for n in range(30):
        began_s, call_id = 1000.0 * n, f"c{n}"
        told.start(began_s, call_id, stages=("query", "generate"))
        progress = CallProgress(**WHO, call_id=call_id, stage="generate")
        told.apply(began_s + 2.0, progress)
        told.apply(began_s + 42.0, CallFinish(**WHO, call_id=call_id))
    told.start(50_000.0, stages=("query", "generate"))
    assert math.isclose(told.expected().at_s - 50_000.0, 42.0, rel_tol=0.1)
    told.progress(50_100.0, stage="generate")  # the query took long for once
    assert math.isclose(told.expected().at_s - 50_100.0, 40.0, rel_tol=0.1)


def lasting(*lengths_s: float) -> DurationModel:
    """A model that has seen calls of these lengths."""
    durations = DurationModel(1.0)
    for length_s in lengths_s:
        durations.observe(CallFeatures("pytest", "coder", "app"), length_s)
    return durations


SOON_OR_LATE = [30.0, 10.0, 30.0, 10.0, 30.0] * 20
"""Two of five calls are over after ten seconds."""


def test_a_critical_agents_upload_is_for_the_quarter_that_returns_first():
    length = lasting(*SOON_OR_LATE).expect(CallFeatures("pytest", "coder", "app"))
    for tag, quantile in ((TAG, 0.5), (CRITICAL, 0.25)):
        told = Told(lasting(*SOON_OR_LATE), tag)
        told.start(100.0)
        assert told.expected().upload_by_s == 100.0 + length.quantile(quantile)
        assert told.expected().at_s == 100.0 + length.quantile(0.5)
        later = told.revise(115.0)
        assert later.upload_by_s == 100.0 + length.quantile(quantile, 15.0)
    assert length.quantile(0.25) < 12.0
    assert length.quantile(0.5) > 20.0


def test_a_promise_is_its_own_upload_time():
    told = Told(tag=CRITICAL)
    told.start(10.0, predicted_s=30.0)
    assert times(told.expected()) == Return(40.0, 10.0, promised=True)
    assert told.expected().upload_by_s == 40.0


def test_of_several_calls_the_last_upload_time_counts():
    told = Told(lasting(*SOON_OR_LATE), CRITICAL)
    told.start(0.0, "learnt")
    alone = told.expected()
    assert alone.upload_by_s < 15.0 < alone.at_s
    told.start(1.0, "promised", predicted_s=14.0)
    assert (told.expected().at_s, told.expected().upload_by_s) == (alone.at_s, 15.0)
    told.apply(2.0, CallFinish(**WHO, call_id="promised"))
    assert told.expected() == alone


@given(
    st.lists(st.floats(0.01, 1000.0), max_size=20),
    st.lists(st.floats(0.1, 1000.0) | st.none(), min_size=1, max_size=3),
    st.lists(st.floats(0.01, 500.0), max_size=6),
    st.integers(0, 100_000),
)
def test_a_critical_agents_upload_never_starts_later(lengths_s, calls, passed, host_tokens):
    timing = UploadTiming(link_tokens_per_s=100_000.0, lead_s=0.2)
    agents = [Told(lasting(*lengths_s), tag) for tag in (TAG, CRITICAL)]
    for number, predicted_s in enumerate(calls):
        for told in agents:
            told.start(0.0, f"c{number}", predicted_s=predicted_s)
    now_s = 0.0
    for passed_s in [0.0, *passed]:
        now_s += passed_s
        usual, critical = (told.revise(now_s) for told in agents)
        assert critical.at_s == usual.at_s == usual.upload_by_s
        starts_s = [timing.start_s(end.upload_by_s, host_tokens) for end in (critical, usual)]
        assert starts_s[0] <= starts_s[1]
        assert critical.upload_by_s >= now_s


@given(
    st.floats(0.1, 1000.0) | st.none(),
    st.lists(st.floats(0.01, 500.0), min_size=1, max_size=12),
)
def test_no_return_is_expected_in_the_past_and_looks_are_few(predicted_s, passed):
    told = Told()
    told.start(0.0, predicted_s=predicted_s)
    now_s = 0.0
    for passed_s in passed:
        now_s += passed_s
        expected = told.revise(now_s)
        assert expected.at_s >= now_s
        assert expected.seconds_left(now_s) >= 0.0
        look_s = told.returns.look_again_s(KEY)
        if expected.promised:
            assert look_s == expected.at_s
        else:
            assert look_s - now_s == pytest.approx(max(REVISION_S, REVISION_SHARE * now_s))


def test_nothing_is_kept_of_who_is_in_no_call():
    told = Told()
    told.start(0.0)
    told.apply(1.0, CallFinish(**WHO, call_id="c"))
    told.start(2.0)
    told.returns.forget(KEY)
    assert told.returns._ends == {}
