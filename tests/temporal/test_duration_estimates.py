"""What the caller's own estimate is worth, and how that is learned."""

import math
import random

import pytest

from tokencake_sglang.temporal.duration import CallFeatures, DurationModel, Source
from tokencake_sglang.temporal.durations.estimates import Estimates, bell
from tokencake_sglang.temporal.durations.grid import RATIO_BINS
from tokencake_sglang.temporal.durations.history import Histogram


def call(given_s: float | None = None, tool: str = "search", agent_type: str = "a") -> CallFeatures:
    return CallFeatures(tool, agent_type, given_s=given_s)


def taught(estimate, calls: int = 200, seed: int = 1) -> DurationModel:
    """A tool of 1 to 100 s whose caller says ``estimate(actual, random)``."""
    model, random_ = DurationModel(1.0), random.Random(seed)
    for _ in range(calls):
        actual_s = 10.0 ** random_.uniform(0.0, 2.0)
        model.observe(call(estimate(actual_s, random_)), actual_s)
    return model


@pytest.mark.parametrize("given_s", [0.05, 2.0, 500.0])
def test_without_any_history_an_estimate_is_trusted(given_s):
    model = DurationModel(1.0)
    assert model.expect(call(given_s)).quantile(0.5) == pytest.approx(given_s, rel=0.1)
    assert model.source(call(given_s)) is Source.GIVEN
    assert model.source(call()) is Source.DEFAULT


def test_exact_estimates_become_sharp_within_ten_calls():
    model = taught(lambda actual_s, _: actual_s, calls=10)
    expected = model.expect(call(20.0))
    assert expected.quantile(0.1) > 17.0
    assert expected.quantile(0.9) < 23.0
    assert expected.quantile(0.5) == pytest.approx(20.0, rel=0.03)


def test_a_caller_who_is_always_off_by_the_same_factor_is_corrected():
    model = taught(lambda actual_s, _: 3.0 * actual_s)
    assert model.expect(call(60.0)).quantile(0.5) == pytest.approx(20.0, rel=0.05)


def test_numbers_that_mean_nothing_fade():
    model = taught(lambda _, random_: 10.0 ** random_.uniform(-2.0, 4.0))
    short, long = (model.expect(call(given_s)).quantile(0.5) for given_s in (0.1, 1000.0))
    assert long / short < 3.0
    assert model.source(call(1000.0)) is not Source.DEFAULT


def test_always_the_same_guess_adds_nothing_to_history():
    model = taught(lambda *_: 10.0)
    expected, plain = model.expect(call(10.0)), model.expect(call())
    for q in (0.1, 0.5, 0.9):
        assert expected.quantile(q) == pytest.approx(plain.quantile(q), rel=0.3)


def test_an_honest_noisy_estimate_and_history_together_are_sharper_than_either():
    """Actual: lognormal of σ 0.5; estimate: noise of σ 0.5 on it. The posterior's σ is 0.35."""
    model, random_ = DurationModel(1.0), random.Random(2)
    for _ in range(400):
        actual_s = math.exp(2.0 + random_.gauss(0.0, 0.5))
        model.observe(call(actual_s * math.exp(random_.gauss(0.0, 0.5))), actual_s)
    given_s = math.exp(3.0)
    expected = model.expect(call(given_s))
    assert math.log(expected.quantile(0.5)) == pytest.approx(2.5, abs=0.15)
    spread = math.log(expected.quantile(0.9) / expected.quantile(0.1)) / (2 * 1.2816)
    assert spread == pytest.approx(0.35, abs=0.1)


def test_one_callers_lies_do_not_cost_an_honest_one_its_credit():
    model, random_ = DurationModel(1.0), random.Random(3)
    for _ in range(200):
        actual_s = 10.0 ** random_.uniform(0.0, 2.0)
        model.observe(call(actual_s, agent_type="honest"), actual_s)
        model.observe(call(10.0 ** random_.uniform(-2.0, 4.0), agent_type="liar"), actual_s)
    assert model.expect(call(50.0, agent_type="honest")).quantile(0.5) == pytest.approx(50, rel=0.1)


def test_a_new_caller_is_judged_by_what_others_were_worth():
    bad = taught(lambda actual_s, random_: actual_s * math.exp(random_.gauss(0.0, 2.0)))
    good = taught(lambda actual_s, _: actual_s)
    spreads = []
    for model in (bad, good):
        expected = model.expect(call(20.0, tool="new"))
        spreads.append(expected.quantile(0.9) / expected.quantile(0.1))
    assert spreads[0] > 3 * spreads[1]


def test_weights_of_the_three_ways_sum_to_one_and_follow_the_scores():
    estimates = Estimates()
    assert sum(estimates.weights(("t", "a"), 0.0)) == pytest.approx(1.0)
    estimates.scores = [0.0, -100.0, -100.0]
    assert estimates.weights(("t", "a"), 50.0)[0] > 0.99


def test_weights_before_any_score_go_from_the_estimate_to_both():
    """(1 - u) · (1, 3, 4) + u · (0.05, 8, 0.5) with u = 1 / (n + 1), as shares."""
    assert Estimates().weights(("t", "a"), 1.0) == pytest.approx(
        [w / 8.275 for w in (0.525, 5.5, 2.25)]
    )


def test_bells_are_as_wide_as_the_spread_of_ratios_asks_for():
    """Silverman's rule; normal draws of deviation 10 bins, 100 of them: 0.9 · 10 · 100^-1/5."""
    exact, wild, random_ = Histogram(RATIO_BINS), Histogram(RATIO_BINS), random.Random(4)
    assert bell(exact) == 1.0
    for _ in range(100):
        exact.add(160.0, 1e6, bell(exact))
        wild.add(160.0 + random_.gauss(0.0, 10.0), 1e6, bell(wild))
    assert bell(exact) == 0.25
    assert bell(wild) == pytest.approx(0.9 * 10 * 100**-0.2, rel=0.15)
