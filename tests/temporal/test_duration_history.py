"""Histories per key, and how far each leans on the level above."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake_sglang.temporal.duration import CallFeatures, DurationModel
from tokencake_sglang.temporal.durations.distribution import Distribution
from tokencake_sglang.temporal.durations.grid import BINS, bin_of, log_logistic, spread
from tokencake_sglang.temporal.durations.history import (
    HUGE,
    LEVELS,
    Histogram,
    History,
    Level,
    Trust,
    bell,
)

SEARCH = CallFeatures(tool="search", agent_type="reader")


def history() -> History:
    return History(log_logistic(1.0, 1.0))


def test_worked_example_of_the_formula():
    """Two calls of 8 s: each level is (n · counts + c · above) / (n + c), n = 1 + e^(-1/memory)."""
    known = history()
    for _ in range(2):
        known.observe(SEARCH, 8.0)
    expected = log_logistic(1.0, 1.0)
    for level in LEVELS[:3]:
        growth = level.memory / (level.memory - 1.0)
        counts = np.zeros(BINS)
        spread(counts, 156.1, 1.0, 6.0)  # 12 · log2(8 s / 1 ms) + ½ = 156.09
        spread(counts, 156.1, growth, 6.0 / 2**0.3)
        n = (1.0 + growth) / growth
        share = n / (n + level.concentration)
        expected = share * counts / (1.0 + growth) + (1.0 - share) * expected
    assert known.mass(SEARCH) == pytest.approx(expected, rel=1e-9)


def test_mass_sums_to_one():
    known = history()
    for number in range(50):
        known.observe(CallFeatures("t", "a", "app", argument_key="k", argument_size=number), 0.5)
    total = known.mass(CallFeatures("t", "a", "app", argument_key="k", argument_size=3)).sum()
    assert total == pytest.approx(1.0)


def test_a_tool_never_seen_is_expected_to_take_what_others_did_until_it_has_a_say():
    model = DurationModel(1.0)
    for _ in range(200):
        model.observe(CallFeatures("search", "reader"), 40.0)
    unseen = CallFeatures("fetch", "reader")
    assert model.expect(unseen).quantile(0.5) == pytest.approx(40.0, rel=0.1)
    model.observe(unseen, 0.1)
    # One call takes 1 / (1 + 1) at the tool's level, then 1 / (1 + 2) at the agent type's.
    assert model.expect(unseen).survival(1.0) == pytest.approx((1 - 1 / 2) * (1 - 1 / 3), abs=0.01)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CallFeatures("sh", "a"), CallFeatures("ls", "a")),
        (CallFeatures("sh", "a"), CallFeatures("sh", "b")),
        (CallFeatures("sh", "a", argument_key="make"), CallFeatures("sh", "a", argument_key="ls")),
        (CallFeatures("sh", "a", argument_size=9), CallFeatures("sh", "a", argument_size=9000)),
        (CallFeatures("sh", "a", "app1"), CallFeatures("sh", "a", "app2")),
        (CallFeatures(None, "a"), CallFeatures(None, "b")),
        (CallFeatures(None, "", "app1"), CallFeatures(None, "", "app2")),
    ],
)
def test_every_feature_tells_calls_apart(one, other):
    model = DurationModel(1.0)
    for _ in range(60):
        model.observe(one, 0.1)
        model.observe(other, 60.0)
    assert model.expect(one).quantile(0.5) < 1.0
    assert model.expect(other).quantile(0.5) > 10.0


def test_a_bimodal_tool_keeps_both_its_modes():
    model = DurationModel(1.0)
    for number in range(200):
        model.observe(SEARCH, 60.0 if number % 4 == 0 else 0.1)
    expected = model.expect(SEARCH)
    assert 0.05 < expected.quantile(0.5) < 0.2
    assert 40.0 < expected.quantile(0.9) < 90.0
    assert expected.quantile(0.5, 2.0) > 40.0
    assert expected.survival(1.0) == pytest.approx(0.25, abs=0.05)


def test_a_tool_that_has_changed_is_relearned():
    model = DurationModel(1.0)
    there = CallFeatures("search", "reader", "app")
    for _ in range(300):
        model.observe(there, 1.0)
    for _ in range(100):
        model.observe(there, 30.0)
    assert model.expect(there).quantile(0.5) == pytest.approx(30.0, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=40), st.randoms())
def test_the_order_of_another_tools_calls_hardly_matters(others_s, random_):
    """It moves only the level above the tool, whose share is c / (n + c)."""
    ours = [("a", 0.5 + 0.1 * number) for number in range(20)]
    interleaved = [*ours]
    for other_s in others_s:
        interleaved.insert(random_.randint(0, len(interleaved)), ("b", other_s))
    models = []
    for calls in (interleaved, [*ours, *(("b", other_s) for other_s in others_s)]):
        model = DurationModel(1.0)
        for tool, duration_s in calls:
            model.observe(CallFeatures(tool, "x"), duration_s)
        models.append(model.expect(CallFeatures("a", "x")))
    # Shares of the tool's and of the agent type's level above: 1 / 21 · 2 / 22.
    assert np.abs(models[0].mass - models[1].mass).sum() / 2 <= 1 / 20 * 2 / 21


def test_a_level_that_never_pays_is_believed_less():
    known, random_ = history(), random.Random(5)
    for _ in range(600):  # sizes say nothing here
        features = CallFeatures("t", "a", argument_size=1 << random_.randrange(11))
        known.observe(features, random_.lognormvariate(0.0, 1.0))
    assert known.trust[3].share(20.0) < Trust(LEVELS[3]).share(20.0)


def test_a_level_that_pays_is_believed_more():
    known = history()
    for number in range(400):
        duration_s = 0.1 if number % 2 else 10.0
        known.observe(CallFeatures("t", "a", argument_size=1000 if number % 2 else 1), duration_s)
    assert known.trust[3].share(20.0) > Trust(LEVELS[3]).share(20.0)


def test_trust_that_is_not_learned_is_the_dirichlet_mean():
    assert Trust(Level("x", 2.0, 100.0)).share(6.0) == 0.75


def test_old_weights_are_brought_back_before_they_overflow():
    node = Histogram(BINS)
    for _ in range(20_000):
        node.add(100.0, 50.0, 1.0)
    assert node.latest < HUGE * 2
    assert node.count == pytest.approx(50.0)
    assert node.weights.sum() == pytest.approx(node.total)


@pytest.mark.parametrize("place", [0.0, 100.0, 100.3, BINS - 1.0])
@pytest.mark.parametrize("deviation", [0.0, 1.0, 6.0, 99.0])
def test_a_bell_keeps_its_mass_at_the_ends_too(place, deviation):
    weights = np.zeros(BINS)
    spread(weights, place, 3.0, deviation)
    assert weights.sum() == pytest.approx(3.0)
    if 50 < place < 300:
        assert int(weights.argmax()) == 100


def test_bells_narrow_as_more_is_known_and_widen_where_durations_lie_far_apart():
    node = Histogram(BINS)
    assert bell(node) == 6.0
    node.add(100.0, 1e9, 1.0)
    assert bell(node) == pytest.approx(6.0 / 2**0.3)
    node.add(150.0, 1e9, 1.0)
    assert bell(node) == pytest.approx(0.6 * 50.0 / 3**0.2, rel=1e-6)
    for _ in range(5000):
        node.add(150.0, 1e9, 1.0)
    assert bell(node) == 1.0


@given(st.one_of(st.just(0.0), st.floats(0.0, 1e9)))
def test_any_length_can_be_learned_from(duration_s):
    known = history()
    known.observe(SEARCH, min(duration_s, 1e6))
    assert known.mass(SEARCH)[bin_of(duration_s)] > 0.0
    assert isinstance(Distribution(known.mass(SEARCH)).quantile(0.5), float)
