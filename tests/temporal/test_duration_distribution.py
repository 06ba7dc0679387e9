"""What a distribution answers, before a call, during it and past everything that was seen."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.temporal.durations.distribution import Distribution
from tokencake_sglang.temporal.durations.grid import (
    BINS,
    EDGES_S,
    MOST_S,
    around,
    bin_of,
    log_logistic,
    logistic_ratio,
    position,
)

probabilities = st.floats(0.0, 1.0)
elapsed = st.one_of(st.just(0.0), st.floats(1e-6, 2e6))


@st.composite
def distributions(draw) -> Distribution:
    """A few lumps on the power law, as the model makes them."""
    mass = log_logistic(draw(st.floats(0.01, 100.0)), 1.0) * draw(st.floats(1e-6, 1.0))
    for index, weight in draw(
        st.lists(st.tuples(st.integers(0, BINS - 1), st.floats(1e-3, 10.0)), max_size=5)
    ):
        mass[index] += weight
    return Distribution(mass)


def lump(*durations_s: float) -> Distribution:
    mass = log_logistic(1.0, 1.0) * 1e-6
    for duration_s in durations_s:
        mass[bin_of(duration_s)] += 1.0
    return Distribution(mass)


@given(distributions(), probabilities, probabilities, elapsed)
def test_quantiles_rise_with_q_and_are_never_over(distribution, p, q, elapsed_s):
    low_s, high_s = (distribution.quantile(level, elapsed_s) for level in sorted((p, q)))
    assert elapsed_s <= low_s <= high_s * (1 + 1e-12)


@given(distributions(), elapsed, elapsed)
def test_survival_is_a_probability_and_falls(distribution, a_s, b_s):
    early, late = (distribution.survival(t_s) for t_s in sorted((a_s, b_s)))
    assert 0.0 <= late <= early + 1e-12 <= 1.0 + 1e-12


@given(distributions(), st.floats(0.01, 0.99), st.one_of(st.just(0.0), st.floats(1e-3, 1e5)))
def test_the_quantile_inverts_the_conditional_survival(distribution, q, elapsed_s):
    at_s = distribution.quantile(q, elapsed_s)
    left = distribution.survival(at_s) / distribution.survival(elapsed_s)
    assert left == pytest.approx(1.0 - q, rel=1e-6)


@given(distributions(), elapsed, st.floats(0.0, 1e6))
def test_the_chance_to_end_soon_is_a_probability(distribution, elapsed_s, horizon_s):
    assert 0.0 <= distribution.probability_within(horizon_s, elapsed_s) <= 1.0


@given(distributions(), elapsed)
def test_the_mean_is_not_over(distribution, elapsed_s):
    assert distribution.mean(elapsed_s) >= elapsed_s


def test_of_a_power_law_survival_median_and_lindys_rest_are_known():
    distribution = Distribution.unknown(2.0)  # S(t) = 1 / (1 + t/2)
    assert distribution.survival(6.0) == pytest.approx(0.25, rel=1e-3)
    assert distribution.quantile(0.5) == pytest.approx(2.0, rel=1e-3)
    assert distribution.probability_within(6.0) == pytest.approx(0.75, rel=1e-3)
    # The median rest after e is e + 2: the longer it lasts, the longer it will.
    assert distribution.quantile(0.5, 100.0) == pytest.approx(202.0, rel=1e-2)


def test_the_mean_is_that_of_the_mass():
    mass = np.zeros(BINS)
    mass[bin_of(10.0)] = 1.0
    assert Distribution(mass).mean() == pytest.approx(10.0, rel=0.04)


def test_a_bimodal_tool_that_was_not_fast_is_slow():
    distribution = lump(0.1, 0.1, 0.1, 60.0)
    assert distribution.quantile(0.5) == pytest.approx(0.1, rel=0.06)
    assert distribution.quantile(0.5, 0.5) == pytest.approx(60.0, rel=0.06)
    assert distribution.mean(0.5) > 55.0


def test_past_everything_seen_the_rest_grows_with_the_time_elapsed():
    distribution = lump(0.1, 0.2)
    rests_s = [distribution.quantile(0.5, e_s) - e_s for e_s in (10.0, 100.0, 1000.0, 1e6, 1e7)]
    assert rests_s == sorted(rests_s)
    assert rests_s[1] == pytest.approx(100.0, rel=0.1)
    assert distribution.quantile(0.5, 1e7) == 2e7
    assert distribution.mean(1e7) == 2e7
    assert distribution.probability_within(1e7, 1e7) == 0.5


def test_progress_outweighs_history():
    distribution = lump(*[1.0] * 50)
    told = distribution.with_progress(10.0, fraction=0.1)
    assert told.quantile(0.5, 10.0) == pytest.approx(100.0, rel=0.35)
    surer = distribution.with_progress(80.0, fraction=0.8)
    spread = told.quantile(0.9) / told.quantile(0.1)
    assert surer.quantile(0.9, 80.0) / surer.quantile(0.1, 80.0) < spread


def test_a_new_estimate_moves_what_is_expected():
    distribution = Distribution.unknown(1.0)
    told = distribution.with_progress(5.0, total_s=300.0)
    assert 200.0 < told.quantile(0.5, 5.0) < 400.0
    assert distribution.quantile(0.5, 5.0) < 20.0  # the one before is as it was


@given(distributions(), probabilities, elapsed)
def test_after_any_progress_the_call_is_not_over(distribution, fraction, elapsed_s):
    told = distribution.with_progress(elapsed_s, fraction=fraction)
    assert told.quantile(0.5, elapsed_s) >= elapsed_s
    assert 0.0 <= told.survival(elapsed_s) <= 1.0


def test_no_progress_says_only_that_the_call_is_not_over():
    distribution = lump(1.0, 50.0)
    told = distribution.with_progress(5.0, fraction=0.0)
    assert told.quantile(0.5) == pytest.approx(distribution.quantile(0.5, 5.0), rel=1e-6)
    assert told.survival(4.0) == 1.0


@pytest.mark.parametrize("report", [{}, {"fraction": 0.5, "total_s": 3.0}, {"fraction": 1.5}])
def test_a_report_that_says_nothing_or_too_much_is_refused(report):
    with pytest.raises(ValueError, match="fraction"):
        lump(1.0).with_progress(1.0, **report)


def test_q_is_a_probability():
    with pytest.raises(ValueError, match="q: expected a probability"):
        lump(1.0).quantile(1.5)


def test_a_distribution_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        lump(1.0)._tails[0] = 1.0


class TestGrid:
    @given(st.floats(0.0, 1e7))
    def test_a_duration_lies_in_its_bin(self, duration_s):
        index = bin_of(duration_s)
        clipped_s = min(duration_s, MOST_S)
        assert EDGES_S[index] <= clipped_s * (1 + 1e-9)
        assert clipped_s <= EDGES_S[index + 1] * (1 + 1e-9)

    def test_it_reaches_from_a_millisecond_to_a_week(self):
        assert EDGES_S[1] == 1e-3
        assert MOST_S > 7 * 24 * 3600.0 * 0.99

    @given(st.floats(0.01, 1e5))
    def test_position_is_the_middle_of_bins(self, duration_s):
        assert abs(position(duration_s) - bin_of(duration_s)) <= 0.5 + 1e-9

    @given(st.floats(20.0, 1000.0))
    def test_ratios_around_an_estimate_have_it_as_their_median(self, estimate_s):
        moved = Distribution(around(logistic_ratio(4.0), estimate_s))
        assert moved.quantile(0.5) == pytest.approx(estimate_s, rel=0.01)
        quartile = math.exp(math.log(3) / 4)  # of a log-logistic of shape 4
        assert moved.quantile(0.75) == pytest.approx(estimate_s * quartile, rel=0.02)
