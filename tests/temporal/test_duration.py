"""Predicting a tool call's length."""

from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.temporal.duration import MAX_TOOLS, DurationModel, Prediction, Source


def test_the_callers_word_wins():
    model = DurationModel(default_s=1.0)
    model.observe("search", 9.0)
    assert model.predict("search", given_s=2.0) == Prediction(2.0, Source.GIVEN)


def test_then_the_tools_own_history():
    model = DurationModel(default_s=1.0)
    for duration_s in (4.0, 5.0, 600.0):
        model.observe("search", duration_s)
    assert model.predict("search") == Prediction(5.0, Source.HISTORY)


def test_then_the_default():
    assert DurationModel(default_s=1.5).predict("search") == Prediction(1.5, Source.DEFAULT)


def test_one_tool_says_nothing_of_another():
    model = DurationModel(default_s=1.0)
    model.observe("search", 9.0)
    assert model.predict("tests").source is Source.DEFAULT


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=100))
def test_predictions_stay_within_what_was_seen(durations_s):
    model = DurationModel(default_s=1.0)
    for duration_s in durations_s:
        model.observe("t", duration_s)
    assert min(durations_s) <= model.predict("t").duration_s <= max(durations_s)


def test_old_calls_are_forgotten():
    model = DurationModel(default_s=1.0)
    for _ in range(100):
        model.observe("t", 100.0)
    for _ in range(32):
        model.observe("t", 1.0)
    assert model.predict("t").duration_s == 1.0


def test_memory_is_bounded_and_the_tool_longest_unseen_goes_first():
    model = DurationModel(default_s=1.0)
    for number in range(MAX_TOOLS + 1):
        model.observe(f"tool-{number}", 7.0)
    assert model.predict("tool-0").source is Source.DEFAULT
    assert model.predict("tool-1").source is Source.HISTORY
