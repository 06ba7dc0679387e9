"""The longest way that is left in a declared graph."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.agents.events import GraphNode
from tokencake_sglang.spatial.graph import NODE_S, DeclaredPaths


def paths(**nodes: tuple[tuple[str, ...], float | None]) -> DeclaredPaths:
    return DeclaredPaths(
        [GraphNode(name=n, after=after, expected_s=s) for n, (after, s) in nodes.items()]
    )


DIAMOND = {
    "plan": ((), 5.0),
    "search": (("plan",), 30.0),
    "draft": (("plan",), 10.0),
    "summary": (("search", "draft"), 4.0),
}


@pytest.mark.parametrize(
    ("node", "remaining_s"),
    [("plan", 39.0), ("search", 34.0), ("draft", 14.0), ("summary", 4.0), ("other", None)],
)
def test_a_join_is_waited_for_by_the_longer_way(node, remaining_s):
    assert paths(**DIAMOND).remaining_s(node) == remaining_s


def test_what_has_passed_of_a_node_is_not_left():
    diamond = paths(**DIAMOND)
    assert diamond.remaining_s("search", elapsed_s=12.0) == 22.0
    assert diamond.remaining_s("search", elapsed_s=1000.0) == 4.0  # it must be about over


def test_a_node_without_a_time_takes_the_mean_of_the_others():
    mixed = paths(plan=((), 10.0), code=(("plan",), None), test=(("code",), 20.0))
    assert mixed.has_times
    assert mixed.remaining_s("plan") == 10.0 + 15.0 + 20.0


def test_without_any_time_the_number_of_nodes_counts():
    shape = paths(plan=((), None), code=(("plan",), None), test=(("code",), None), note=((), None))
    assert not shape.has_times
    assert shape.remaining_s("plan") == 3 * NODE_S
    assert shape.remaining_s("note") == NODE_S


@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 11)), st.none() | st.floats(0, 1e5)),
        min_size=1,
        max_size=12,
    ),
    st.randoms(),
)
def test_a_node_has_its_own_time_and_the_longest_way_of_what_follows(drawn, random):
    graph = [
        GraphNode(
            name=f"n{i}", after=tuple(f"n{j}" for j in sorted(before) if j < i), expected_s=time_s
        )
        for i, (before, time_s) in enumerate(drawn)
    ]
    shuffled = list(graph)
    random.shuffle(shuffled)
    declared, other = DeclaredPaths(graph), DeclaredPaths(shuffled)
    for node in graph:
        following = [declared.remaining_s(n.name) for n in graph if node.name in n.after]
        own_s = declared.remaining_s(node.name) - max(following, default=0.0)
        assert other.remaining_s(node.name) == pytest.approx(declared.remaining_s(node.name))
        if node.expected_s is not None:
            assert own_s == pytest.approx(node.expected_s, abs=1e-6)
