"""Quotas and the reserve."""

from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.spatial.partition import Need, Partitions


def need(tokens: int, agent_type: str = "default", tenant: str = "common") -> Need:
    return Need(agent_type, tenant, tokens)


def withheld(quotas, *needs: Need, held=None, tenants=None, held_by_tenant=None) -> int:
    """Of a reserve of 1,000 tokens."""
    return Partitions(1000, quotas, tenants or {}).withheld_tokens(
        needs, held_by_partition=held or {}, held_by_tenant=held_by_tenant or {}
    )


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
    assert withheld({}, need(5000), held={"": 300}) == 700
    assert withheld({}, need(5000), held={"": 5000}) == 0


def test_no_more_is_withheld_than_critical_agents_need():
    assert withheld({}, need(150), need(50)) == 200
    assert withheld({}) == 0


def test_a_partition_withholds_no_more_than_its_quota():
    quotas = {"reviewer": 0.3}
    assert withheld(quotas, need(5000, "reviewer")) == 300
    assert withheld(quotas, need(5000, "reviewer"), held={"reviewer": 200}) == 100
    assert withheld(quotas, need(5000, "searcher"), held={"reviewer": 300}) == 700
    assert withheld(quotas, need(5000, "reviewer"), need(5000, "searcher")) == 1000


def test_a_tenant_withholds_no_more_than_its_quota_whatever_the_types():
    quotas = {"reviewer": 0.3}
    needs = (need(5000, "reviewer", "a"), need(5000, "searcher", "a"))
    assert withheld(quotas, *needs, tenants={"a": 0.4}) == 400
    assert withheld(quotas, *needs, tenants={"a": 0.4}, held_by_tenant={"a": 350}) == 50
    assert withheld(quotas, *needs, need(50, "searcher", "b"), tenants={"a": 0.4}) == 450


parts = st.dictionaries(st.sampled_from(["r", "s"]), st.floats(0, 0.5), max_size=2)


@given(
    parts,
    parts,
    st.lists(
        st.builds(
            Need,
            st.sampled_from(["r", "s", "t"]),
            st.sampled_from(["r", "x"]),
            st.integers(0, 2000),
        )
    ),
)
def test_it_is_never_more_than_the_reserve_or_the_need(quotas, tenants, needs):
    tokens = withheld(quotas, *needs, tenants=tenants)
    assert 0 <= tokens <= min(1000, sum(need.tokens for need in needs))
