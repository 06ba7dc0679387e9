"""How many tokens agents answer with: what is learnt of it."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.spatial import lengths
from tokencake_sglang.spatial.lengths import FEWEST, LENGTHS_KEPT, OutputLengths

outputs = st.lists(st.integers(0, 5000), min_size=FEWEST, max_size=300)


def learnt(*tokens: int) -> OutputLengths:
    model = OutputLengths()
    for length in tokens:
        model.learn("coder", length)
    return model


def test_too_few_outputs_say_nothing():
    assert learnt(*[10] * (FEWEST - 1)).tokens_left("coder", 0) is None
    assert learnt(*[10] * FEWEST).tokens_left("coder", 0) == 10


def test_types_are_told_apart():
    assert learnt(*[10] * 20).tokens_left("planner", 0) is None


def test_nine_of_ten_keep_to_it():
    assert learnt(*range(1, 101)).tokens_left("coder", 0) == 90


def test_whoever_has_outlived_most_is_like_those_who_did_too():
    bimodal = learnt(*[20] * 115, *[100] * 10)
    assert bimodal.tokens_left("coder", 0) == 27  # the mean
    assert bimodal.tokens_left("coder", 20) == 80


def test_rare_long_outputs_count_with_their_mean():
    assert learnt(*[20] * 11, 2000).tokens_left("coder", 0) == 185


def test_nothing_is_said_of_an_output_longer_than_all():
    assert learnt(*[10] * 20).tokens_left("coder", 10) is None


def test_it_follows_a_change():
    assert learnt(*[10] * 200, *[500] * LENGTHS_KEPT).tokens_left("coder", 0) == 500


def test_types_are_bounded(monkeypatch):
    monkeypatch.setattr(lengths, "TYPES_KEPT", 3)
    model = OutputLengths()
    for _ in range(FEWEST):
        for name in ("a", "b", "c"):
            model.learn(name, 5)
    model.learn("a", 5)
    model.learn("d", 5)
    assert model.tokens_left("b", 0) is None
    assert model.tokens_left("a", 0) == model.tokens_left("c", 0) == 5


@given(outputs, st.integers(0, 6000))
def test_it_is_the_quantile_or_mean_of_the_latest_that_were_longer(tokens, generated):
    longer = sorted(t for t in tokens[-LENGTHS_KEPT:] if t > generated)
    left = learnt(*tokens).tokens_left("coder", generated)
    if not longer:
        assert left is None
    else:
        quantile = longer[math.ceil(0.9 * len(longer)) - 1]
        assert left == max(quantile, math.ceil(sum(longer) / len(longer))) - generated
        assert left > 0
