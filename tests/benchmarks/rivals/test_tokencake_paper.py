"""The paper's formulas (arXiv 2510.18586 v2), worked by hand, and what the policy makes of them."""

import math

import pytest

from benchmarks.rivals.tokencake_paper import Paper
from benchmarks.rivals.tokencake_paper.formulas import (
    CallTimes,
    dynamic_priority,
    fitting,
    reservations,
    reserve_ratio,
    static_priority,
)
from tests.benchmarks.rivals.views import MACHINE, FixedView, agent, call, on_device, request
from tokencake_sglang.agents.workflow import Step, Workflow
from tokencake_sglang.policy import CachedTokens, Insure, Keep, Knowledge, LetGo, Release, Upload

AGENT = agent("a", kind="coder")
KEY = AGENT.key


def test_equation_1_blends_the_callers_estimate_with_what_was_seen():
    times = CallTimes()
    assert times.predict_s("search", 4.0) == 4.0
    times.learn("search", 8.0)
    assert times.predict_s("search", None) == 8.0
    assert times.predict_s("search", 4.0) == 6.0
    times.learn("search", 4.0)
    assert times.predict_s("search", None) == 6.0
    assert times.predict_s("search", 3.0) == 4.5


def test_an_unseen_tool_takes_its_cold_start_and_an_unknown_one_a_second():
    times = CallTimes()
    times.cold_start_s["search"] = 2.5
    assert times.predict_s("search", None) == 2.5
    assert times.predict_s("other", None) == 1.0


def test_algorithm_1_takes_the_largest_request_that_the_window_computes():
    # (4 s - 1 s) of 1,000 tokens/s is 3,000 tokens.
    assert fitting(4.0, 1.0, 1000.0, [500, 2900, 3100]) == 2900
    assert fitting(4.0, 1.0, 1000.0, [3000]) == 3000
    assert fitting(4.0, 1.0, 1000.0, [3001]) is None
    assert fitting(1.0, 1.0, 1000.0, [0]) is None


def test_priorities_are_as_published():
    assert static_priority(5, 3) == 15
    assert dynamic_priority(10.0, 1000) == pytest.approx(10 * math.log(100))
    assert dynamic_priority(0.0, 1000) == 0.0


def test_the_published_defects_are_kept():
    assert static_priority(17, 0) == 0, "the last step of an application counts nothing"
    assert dynamic_priority(10.0, 9000) > dynamic_priority(10.0, 500), "longer goes first"
    assert dynamic_priority(500.0, 500) == 0.0, "waiting lowers it in the end"
    assert dynamic_priority(1000.0, 500) < 0


@pytest.mark.parametrize(
    ("ratio", "usage", "expected"),
    [
        (0.10, 0.75, 0.15),
        (0.10, 0.74, 0.10),
        (0.10, 0.41, 0.10),
        (0.10, 0.40, 0.05),
        (0.05, 0.1, 0.05),
        (0.30, 0.9, 0.30),
    ],
)
def test_algorithm_2_moves_the_reserve_at_its_watermarks(ratio, usage, expected):
    assert reserve_ratio(ratio, usage) == pytest.approx(expected)


def test_algorithm_2_shares_by_memory_and_priority_and_leaves_the_rest_to_nobody():
    scores = {"a": 6.0, "b": 3.0, "c": 1.0, "d": 0.0}
    shares = reservations(scores, {"a": 200.0}, 1000, 0.10)
    # R_total is 100; a has 20 % of the memory and 6 / 10 of the score.
    assert shares == pytest.approx({"a": 40.0, "b": 15.0, "c": 5.0})
    assert sum(shares.values()) == pytest.approx(60.0)


def stalled(predicted_s: float = 4.0) -> Paper:
    policy = Paper(MACHINE)
    policy.tokens_per_s = 1000.0
    policy.call_started(AGENT, call(predicted_s=predicted_s), 0.0)
    return policy


def test_a_context_leaves_for_a_request_that_fits_once_it_is_copied():
    policy = stalled()
    # 12,700 tokens take 0.1 s each way: a window of 3.8 s, so 3,800 tokens.
    bare = CachedTokens(12_700, 0, 0, 12_700, uncopied_tokens=12_700)
    view = FixedView(queue=[request("r", tokens=3800)], tokens={KEY: bare})
    assert list(policy.decide(view)) == [LetGo(KEY, "gate"), Insure(KEY, "gate")]
    assert list(policy.decide(view)) == [Insure(KEY, "gate")], "until it is copied"
    view.tokens = {KEY: on_device(12_700)}
    assert list(policy.decide(view)) == [Release(KEY, "copied")]


def test_a_context_stays_when_nothing_fits_or_all_of_it_is_shared():
    view = FixedView(queue=[request("r", tokens=3801)], tokens={KEY: on_device(12_700)})
    assert list(stalled().decide(view)) == [Keep(KEY, "gate")]
    view = FixedView(queue=[request("r", tokens=10)], tokens={KEY: CachedTokens(12_700, 0, 0, 0)})
    assert list(stalled().decide(view)) == []


def test_a_waiting_request_answers_for_one_context():
    policy = stalled()
    other = agent("b")
    policy.call_started(other, call(predicted_s=4.0), 0.0)
    view = FixedView(
        queue=[request("r", tokens=100)],
        tokens={KEY: on_device(1000), other.key: on_device(1000)},
    )
    assert list(policy.decide(view))[-1] == Keep(other.key, "gate")


def away(policy: Paper) -> FixedView:
    """The context has left: 12,700 tokens, 0.1 s from the device."""
    view = FixedView(queue=[request("r", tokens=100)], tokens={KEY: on_device(12_700)})
    list(policy.decide(view))
    list(policy.decide(view))
    view.tokens = {KEY: CachedTokens(0, 12_700, 0, 0)}
    return view


def test_a_context_comes_back_after_five_steps_of_reservation_before_the_call_ends():
    policy = stalled()
    view = away(policy)
    view.now_s = 3.79
    assert list(policy.decide(view)) == []
    assert policy.withheld_tokens(request("r"), view) == 0
    view.now_s = 3.81  # 0.19 s left: within 0.1 s of upload and 0.1 s of buffer
    withheld = []
    for _ in range(5):
        assert list(policy.decide(view)) == []
        withheld.append(policy.withheld_tokens(request("r"), view))
    assert withheld == [2540, 5080, 7620, 10_160, 12_700]
    assert policy.withheld_tokens(request("next", AGENT), view) == 0, "it is its own"
    assert list(policy.decide(view)) == [Upload(KEY, "predicted")]


def test_an_unexpected_return_brings_the_context_back_at_once():
    policy = stalled()
    view = away(policy)
    view.now_s = 1.0
    policy.call_finished(AGENT, call(), 1.0)
    assert list(policy.decide(view)) == [Upload(KEY, "returned")]
    view.tokens = {KEY: on_device(12_700)}
    assert list(policy.decide(view)) == []


def test_critical_types_leave_nothing_and_others_what_is_reserved():
    policy = Paper(MACHINE)
    kinds = [agent(kind, kind=kind) for kind in ("a", "b", "c", "d")]
    waiting = [
        request(f"r{place}", of, queued_s=-float(10 * (4 - place)))
        for place, of in enumerate(kinds)
    ]
    view = FixedView(free_tokens=48_800, queue=waiting)
    list(policy.decide(view))
    # 5 % of 48,800, halved for nobody uses any: the paper's shares leave the rest to nobody.
    assert policy.withheld_tokens(waiting[3], view) == 1220
    assert policy.withheld_tokens(waiting[0], view) == 0


def test_the_queue_is_ordered_by_the_hybrid_score():
    policy = Paper(MACHINE)
    policy.space._static = {"deep": 1000.0}
    waiting = [request("young", queued_s=9.0), request("old"), request("deep", queued_s=9.0)]
    assert list(policy.order(FixedView(now_s=10.0, queue=waiting))) == [2, 1, 0]


def test_a_request_whose_context_is_pinned_goes_first_and_leaves_nothing():
    policy = Paper(MACHINE)
    step = Step("next", KEY, "app", "coder", False, (), 1000, 100)
    policy.prepare(Knowledge(Workflow([step]), lambda *_: 1.0, lambda *_: 1.0))
    waiting = [request("old"), request("next", AGENT, queued_s=9.0)]
    view = FixedView(now_s=10.0, queue=waiting, kept={KEY})
    policy._promised_tokens = 500
    assert list(policy.order(view)) == [1, 0]
    assert policy.withheld_tokens(waiting[1], view) == 0
    assert policy.withheld_tokens(waiting[0], view) == 500
    view.kept = set()
    assert list(policy.order(view)) == [0, 1]
