from hypothesis import given
from hypothesis import strategies as st

from tests.replay.builders import request
from tokencake_sglang.replay.prefix_tree import PrefixTree, least_prefill
from tokencake_sglang.replay.tokens import Span

rows = st.lists(
    st.lists(
        st.builds(Span, st.sampled_from("ab"), st.integers(0, 3), st.integers(1, 5)), max_size=4
    ),
    max_size=8,
)


@given(rows)
def test_the_tree_holds_every_prefix_once(sequences: list[list[Span]]) -> None:
    tree = PrefixTree()
    prefixes: set[tuple[tuple[str, int], ...]] = set()
    for spans in sequences:
        plain = [(s.segment, s.start + i) for s in spans for i in range(s.length)]
        whole = [tuple(plain[: i + 1]) for i in range(len(plain))]
        assert tree.insert(spans) == sum(prefix in prefixes for prefix in whole)
        prefixes.update(whole)
        assert tree.tokens == len(prefixes)


def test_generated_tokens_are_not_computed_again() -> None:
    first = request("a", prompt=(Span("p", 0, 10),), output=(Span("o", 0, 5),))
    second = request("b", after="a", prompt=(Span("p", 0, 10), Span("o", 0, 5), Span("t", 0, 3)))
    assert least_prefill([first, second]) == (13, 23)
