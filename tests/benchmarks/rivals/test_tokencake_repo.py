"""The released code's gate (pku-lemonade/TokenCake, ``vllm/tokencake``), worked by hand."""

from dataclasses import replace

import pytest

from benchmarks.rivals.tokencake_repo.gate import (
    Pressure,
    Verdict,
    churn_penalty,
    evaluate,
    is_worth_its_way,
    release_s,
)
from benchmarks.rivals.tokencake_repo.graph import Metadata
from benchmarks.rivals.tokencake_repo.preservation import Preservation, StallTimes
from tests.benchmarks.rivals.views import MACHINE, FixedView, agent, call
from tokencake_sglang.policy import CachedTokens, Insure

BUSY = Pressure(
    usage=0.9,
    free=300,
    waiting=5,
    waiting_demand=300,
    critical_demand=0,
    shared_available=0,
    fit_demand=128,
)
EARLY = Metadata(importance=3, depth=3, max_depth=17)


def judged(declared=EARLY, pressure=BUSY, **changes):
    facts = {"blocks": 300, "host_has_room": True, "remaining_s": 4.0, "transfer_s": 0.2}
    return evaluate(declared, pressure, **{**facts, **changes})


def test_the_gates_score_is_the_sum_of_its_parts():
    # 6 for the stall, (0.9 - 0.6) * 6 and 300/301 for the pressure, 128/300 for what fits,
    # 1 for a safe upload and 1 for room on the host, less 0.35 * 3 for importance.
    expected = 6 + 1.8 + 300 / 301 + 128 / 300 + 1 + 1 - 1.05
    assert judged().score == pytest.approx(expected)
    assert judged(churn=2.5).score == pytest.approx(expected - 2.5)
    assert judged(agent_score=12.0).score == pytest.approx(expected - 0.35 * 3)
    near = replace(EARLY, near_completion=True)
    assert judged(near).score == pytest.approx(expected - 2)
    assert judged(replace(EARLY, depth=16)).score == pytest.approx(expected - 2), "one level to go"
    assert judged(host_has_room=False).score == pytest.approx(expected - 5)
    # A stall of 1.5 transfers: 0.1 / 0.25 instead of 6, and an upload that is not safe.
    assert judged(remaining_s=0.3).score == pytest.approx(expected - 6 + 0.4 - 2)


IDLE = replace(BUSY, usage=0.5)
IMPORTANT = replace(EARLY, importance=13)


@pytest.mark.parametrize(
    ("verdict", "declared", "pressure", "changes"),
    [
        (Verdict.SELECTED, EARLY, BUSY, {}),
        (Verdict.NOT_ELIGIBLE, replace(EARLY, offload_eligible=False), BUSY, {}),
        (Verdict.EMPTY, EARLY, BUSY, {"blocks": 0}),
        (Verdict.NO_WAITING_DEMAND, EARLY, replace(BUSY, fit_demand=0), {}),
        (Verdict.CPU_CAPACITY, EARLY, BUSY, {"host_has_room": False}),
        (Verdict.UNPROFITABLE, EARLY, BUSY, {"remaining_s": 0.2}),
        # The margin must be twice the transfer, unless the pool is nearly full and the call long.
        (Verdict.UNPROFITABLE, EARLY, BUSY, {"remaining_s": 2.9, "transfer_s": 1.0}),
        (Verdict.SELECTED, EARLY, BUSY, {"remaining_s": 3.0, "transfer_s": 1.0}),
        # Little in use: only when more waits than is free, and as much fits as would be kept.
        (Verdict.LOW_PRESSURE, EARLY, IDLE, {"blocks": 100}),
        (Verdict.SELECTED, EARLY, replace(IDLE, free=299), {"blocks": 128}),
        (Verdict.LOW_PRESSURE, EARLY, replace(IDLE, free=299), {"blocks": 129}),
        # Important contexts need a margin of eight transfers, or an emergency.
        (Verdict.UNPROFITABLE, IMPORTANT, BUSY, {"remaining_s": 4.4, "transfer_s": 0.5}),
        (Verdict.SELECTED, IMPORTANT, BUSY, {"remaining_s": 4.5, "transfer_s": 0.5}),
        (Verdict.UNPROFITABLE, replace(IMPORTANT, near_completion=True), BUSY, {}),
        (
            Verdict.SELECTED,
            replace(IMPORTANT, near_completion=True),
            BUSY,
            {"remaining_s": 5.5, "transfer_s": 0.5},
        ),
        (
            Verdict.UNPROFITABLE,
            replace(IMPORTANT, near_completion=True),
            replace(BUSY, usage=0.84),
            {"remaining_s": 5.5, "transfer_s": 0.5},
        ),
    ],
)
def test_the_gate_rejects_for_the_published_reasons(verdict, declared, pressure, changes):
    assert judged(declared, pressure, **changes).verdict is verdict


def test_a_score_below_one_is_rejected():
    weak = replace(BUSY, usage=0.6, waiting_demand=10, fit_demand=1)
    facts = {"remaining_s": 0.75, "transfer_s": 0.25}
    assert judged(replace(EARLY, importance=7), weak, **facts).verdict is Verdict.SELECTED
    rejected = judged(replace(EARLY, importance=7), weak, churn=1.5, **facts)
    assert rejected.verdict is Verdict.UNPROFITABLE
    assert 0 < rejected.score < 1


def test_churn_prefix_and_release_follow_their_formulas():
    assert churn_penalty(None, 64) == 0
    assert churn_penalty(4, 0) == 1.5
    assert churn_penalty(5, 80) == 2.0
    assert churn_penalty(4, 200) == 5.5
    assert is_worth_its_way(0.61, 0.2)
    assert not is_worth_its_way(0.59, 0.2)
    assert not is_worth_its_way(0.054, 0.005), "50 ms at least"
    assert release_s(10.0, 0.04) == 9.9
    assert release_s(10.0, 0.2) == 9.75


def test_stall_times_blend_by_type_and_tool():
    times = StallTimes()
    assert times.predict_s("coder", call(predicted_s=4.0)) == 4.0
    assert times.predict_s("coder", call()) == 1.0
    times.learn("coder", "search", 8.0)
    assert times.predict_s("coder", call(predicted_s=4.0)) == 6.0
    times.learn("coder", "search", 4.0)
    assert times.predict_s("coder", call()) == 6.0
    assert times.predict_s("tester", call()) == 1.0


def test_a_context_is_copied_once_and_a_rejected_one_rests_for_8_steps():
    preservation = Preservation(MACHINE)
    stalled = agent("a")
    preservation.call_started(stalled, call(predicted_s=4.0), 0.0)
    key = stalled.key
    view = FixedView(tokens={key: CachedTokens(4800, 0, 0, 4800, uncopied_tokens=4800)})

    def step(pressure):
        preservation.new_step()
        return list(preservation.decide(view, pressure, {key: EARLY}, {}))

    nothing_fits = replace(BUSY, fit_demand=0)
    for _ in range(9):
        assert step(nothing_fits) == []
    assert preservation.verdicts[Verdict.NO_WAITING_DEMAND] == 2, "at steps 1 and 9"
    assert step(BUSY) == [Insure(key, "selected")], "at once when the pressure changes"
    view.tokens = {key: CachedTokens(4800, 0, 4800, 4800)}
    assert step(BUSY) == []
    assert not preservation.is_pending


def test_what_is_pinned_on_the_host_leaves_no_room_until_it_is_released():
    small = replace(MACHINE, host_tokens=5000)
    preservation = Preservation(small)
    tokens = {}
    for name in "ab":
        key = agent(name).key
        preservation.call_started(agent(name), call(predicted_s=4.0), 0.0)
        tokens[key] = CachedTokens(4800, 0, 0, 4800, uncopied_tokens=4800)
    view = FixedView(machine=small, tokens=tokens)
    declared = dict.fromkeys(tokens, EARLY)
    copied = list(preservation.decide(view, BUSY, declared, {}))
    assert copied == [Insure(agent("a").key, "selected")]
    assert preservation.verdicts[Verdict.CPU_CAPACITY] == 1
