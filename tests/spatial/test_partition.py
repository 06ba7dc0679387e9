"""Quotas and the reserve."""

from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.spatial.partition import Partitions


def test_named_types_have_their_own_partition_and_others_share_the_rest():
    partitions = Partitions(1000, {"reviewer": 0.3, "planner": 0.2})
    assert partitions.partition_of("reviewer") == "reviewer"
    assert partitions.partition_of("searcher") == ""
    quotas = [partitions.quota_tokens(name) for name in ("reviewer", "planner", "")]
    assert quotas == [300, 200, 500]


def test_without_quotas_everybody_shares_the_whole_reserve():
    assert Partitions(1000, {}).quota_tokens("") == 1000


@given(
    st.integers(0, 1 << 20),
    st.dictionaries(st.text(min_size=1, max_size=5), st.floats(0, 0.2), max_size=5),
)
def test_quotas_never_exceed_the_reserve(reserve_tokens, quotas):
    partitions = Partitions(reserve_tokens, quotas)
    total = sum(partitions.quota_tokens(name) for name in [*quotas, ""])
    assert total <= reserve_tokens


def test_what_critical_agents_hold_counts_towards_the_reserve():
    partitions = Partitions(1000, {})
    assert partitions.withheld_tokens(held_tokens=300, needed_tokens=5000) == 700
    assert partitions.withheld_tokens(held_tokens=5000, needed_tokens=5000) == 0


def test_no_more_is_withheld_than_critical_agents_need():
    partitions = Partitions(1000, {})
    assert partitions.withheld_tokens(held_tokens=0, needed_tokens=200) == 200
    assert partitions.withheld_tokens(held_tokens=0, needed_tokens=0) == 0
