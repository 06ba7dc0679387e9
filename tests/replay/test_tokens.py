from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.replay import tokens
from tokencake_sglang.replay.tokens import Span

VOCAB = 1000
spans = st.lists(
    st.builds(Span, st.sampled_from("ab"), st.integers(0, 5), st.integers(1, 6)), max_size=6
)


def plain(of: list[Span]) -> list[tuple[str, int]]:
    return [(span.segment, span.start + i) for span in of for i in range(span.length)]


def test_tokens_are_pinned_so_that_committed_figures_stay_reproducible() -> None:
    assert expand("app/context", 0, 5) == [541, 847, 80, 789, 857]


def expand(segment: str, start: int, length: int) -> list[int]:
    return list(tokens.expand([Span(segment, start, length)], VOCAB))


def test_a_token_depends_on_its_segment_and_offset_only() -> None:
    whole = expand("a", 0, 300)
    assert expand("a", 100, 50) == whole[100:150]
    assert [tokens.token("a", i, VOCAB) for i in range(20)] == whole[:20]
    assert expand("b", 0, 300) != whole


def test_tokens_fill_the_vocabulary_from_three_on() -> None:
    seen = set(tokens.expand([Span("a", 0, 2000)], 20))
    assert seen == set(range(3, 20))


def test_expansion_is_an_array_of_int64_in_the_order_of_the_spans() -> None:
    result = tokens.expand([Span("a", 0, 3), Span("b", 7, 2)], VOCAB)
    assert result.typecode == "q"
    assert list(result) == expand("a", 0, 3) + expand("b", 7, 2)


@pytest.mark.parametrize("size", [3, 0, 2**31 + 1])
def test_an_impossible_vocabulary_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        tokens.expand([Span("a", 0, 1)], size)


@given(spans)
def test_joining_keeps_the_tokens_and_leaves_no_neighbours(row: list[Span]) -> None:
    joined = tokens.joined(row)
    assert plain(list(joined)) == plain(row)
    assert all((a.segment, a.end) != (b.segment, b.start) for a, b in pairwise(joined))


@given(spans, st.integers(0, 40), st.integers(0, 40))
def test_cutting_is_slicing(row: list[Span], start: int, end: int) -> None:
    assert plain(list(tokens.cut(row, start, end))) == plain(row)[start:end]
    assert plain(list(tokens.cut(row, start))) == plain(row)[start:]


@given(spans, spans, spans)
def test_the_common_prefix_is_that_of_the_tokens(
    head: list[Span], first: list[Span], second: list[Span]
) -> None:
    a, b = plain(head + first), plain(head + second)
    expected = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    assert tokens.common_prefix(head + first, head + second) == expected
