"""Shares of the pool among tenants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.spatial import shares as shares_module
from tokencake_sglang.spatial.order import Queued, admission_order
from tokencake_sglang.spatial.shares import CLAIM_S, LEVEL_S, UNTAGGED


class Shares(shares_module.Shares):
    """Shares that can be told totals in place of what has changed."""

    def __init__(self, weights: dict[str, float], pool_tokens: int = 0) -> None:
        super().__init__(weights, pool_tokens)
        self.totals: dict[str, tuple[int, int]] = {}

    def update(self, tenant: str, now_s: float, *, running_tokens: int, active: bool) -> None:
        tokens, requests = self.totals.get(tenant, (0, 0))
        self.totals[tenant] = running_tokens, int(active)
        self.add(tenant, now_s, tokens=running_tokens - tokens, queued=int(active) - requests)


def served(
    weights: dict[str, float], tenants: str, rounds: int, pool_tokens: int = 0
) -> dict[str, int]:
    """How often each of always busy tenants was chosen to hold 100 tokens for a second."""
    shares = Shares(weights, pool_tokens)
    counts = dict.fromkeys(tenants, 0)
    for second in range(rounds):
        waiting = [(tenant, 100, number) for number, tenant in enumerate(tenants)]
        chosen = tenants[shares.interleaved(waiting, float(second))[0]]
        counts[chosen] += 1
        for tenant in tenants:
            held = 100 if tenant == chosen else 0
            shares.update(tenant, float(second), running_tokens=held, active=True)
    return counts


def test_busy_tenants_hold_the_pool_in_proportion_to_their_weights():
    counts = served({"a": 3.0, "b": 1.0}, "ab", 400)
    assert counts["a"] / counts["b"] == pytest.approx(3.0, rel=0.05)


def test_a_tenant_that_is_not_named_weighs_one():
    counts = served({"a": 1.0}, "ab", 100)
    assert counts["a"] == pytest.approx(counts["b"], abs=1)


def test_that_little_differences_do_not_count_costs_nobody_more_than_one_level():
    counts = served({"a": 3.0, "b": 1.0}, "ab", 400, pool_tokens=50)
    assert abs(counts["a"] / 3 - counts["b"]) * 100 <= LEVEL_S * 50 + 100


def test_between_tenants_that_are_level_the_order_given_stays():
    requests = [("b", 10, 0), ("a", 10, 1), ("b", 10, 2)]
    for ahead_s, order in ((2.0, [0, 1, 2]), (LEVEL_S / 2, [1, 0, 2])):
        shares = Shares({}, pool_tokens=50)
        shares.update("a", 0.0, running_tokens=0, active=True)
        shares.update("b", 0.0, running_tokens=100, active=True)
        assert shares.interleaved(requests, ahead_s) == order


def test_weights_mean_their_ratio_whatever_their_scale():
    small, large = (
        served({"a": 2.0 * scale, "b": 1.0 * scale}, "ab", 400, pool_tokens=50)
        for scale in (1.0, 512.0)
    )
    assert small == large


def test_what_a_tenant_left_unused_while_it_was_away_gives_it_no_claim():
    shares = Shares({})
    shares.update("away", 0.0, running_tokens=100, active=True)
    shares.update("away", 1.0, running_tokens=0, active=False)
    shares.update("busy", 1.0, running_tokens=100, active=True)
    shares.update("away", 1000.0, running_tokens=100, active=True)
    busy_s, away_s = (shares.virtual_s(tenant, 1000.0) for tenant in ("busy", "away"))
    assert away_s == busy_s


def test_what_it_left_unused_gives_it_a_claim_up_to_the_bound():
    """An agent's tenant has nothing queued while its agents are in calls."""
    for away_s, claimed_s in ((10.0, 10 * 100 / 2), (CLAIM_S, CLAIM_S * 50 / 2)):
        shares = Shares({"away": 2.0, "busy": 2.0}, pool_tokens=50)
        shares.update("away", 0.0, running_tokens=0, active=True)
        shares.update("busy", 0.0, running_tokens=100, active=True)
        shares.update("away", 0.0, running_tokens=0, active=False)
        shares.update("away", away_s, running_tokens=0, active=True)
        busy_s, away_virtual_s = (shares.virtual_s(name, away_s) for name in ("busy", "away"))
        assert busy_s - away_virtual_s == claimed_s


def test_who_comes_for_the_first_time_claims_nothing():
    shares = Shares({}, pool_tokens=50)
    shares.update("busy", 0.0, running_tokens=100, active=True)
    shares.update("new", 50.0, running_tokens=0, active=True)
    assert shares.virtual_s("new", 50.0) == shares.virtual_s("busy", 50.0)


def test_a_tenant_that_has_waited_all_the_time_keeps_its_claim():
    shares = Shares({})
    shares.update("waiting", 0.0, running_tokens=0, active=True)
    shares.update("busy", 0.0, running_tokens=100, active=True)
    shares.update("waiting", 50.0, running_tokens=0, active=True)
    assert shares.interleaved([("busy", 10, 0), ("waiting", 10, 1)], 50.0) == [1, 0]


def test_within_one_attempt_tenants_take_turns_by_the_tokens_they_ask_for():
    shares = Shares({"heavy": 2.0})
    requests = [("heavy", 100, 0), ("heavy", 100, 1), ("heavy", 100, 2), ("light", 100, 3)]
    assert shares.interleaved(requests, 0.0) == [0, 3, 1, 2]


def test_who_is_away_does_not_say_where_others_begin():
    shares = Shares({}, pool_tokens=50)
    shares.update("ahead", 0.0, running_tokens=900, active=True)
    shares.update("ahead", 1.0, running_tokens=0, active=False)
    assert shares.virtual_s("new", 1.0 + CLAIM_S) == 900
    assert shares.virtual_s("new", 1.5 + CLAIM_S) == 0


def test_who_was_away_for_longer_claims_nothing_and_nothing_is_held_against_it():
    for held_before in (0, 900):
        shares = Shares({}, pool_tokens=50)
        shares.update("busy", 0.0, running_tokens=10, active=True)
        shares.update("away", 0.0, running_tokens=held_before, active=True)
        shares.update("away", 1.0, running_tokens=0, active=False)
        shares.update("away", 1.5 + CLAIM_S, running_tokens=0, active=True)
        away_s, busy_s = (shares.virtual_s(name, 1.5 + CLAIM_S) for name in ("away", "busy"))
        assert away_s == busy_s


def test_idle_tenants_are_forgotten_once_that_changes_nothing():
    shares = Shares({})
    for tenant, tokens in (("ahead", 300), ("behind", 50), ("running", 100)):
        shares.update(tenant, 0.0, running_tokens=tokens, active=True)
    for tenant in ("ahead", "behind"):
        shares.update(tenant, 1.0, running_tokens=0, active=False)
    shares.forget_idle(1.0 + CLAIM_S)
    assert shares._accounts.keys() == {"ahead", "behind", "running"}
    shares.forget_idle(1.5 + CLAIM_S)
    assert shares._accounts.keys() == {"running"}


def test_a_tenant_is_active_until_the_last_of_its_requests_has_ended():
    shares = Shares({})
    shares.add("two", 0.0, tokens=100, queued=2)
    shares.add("one", 0.0, tokens=50, queued=1)
    shares.add("two", 1.0, tokens=-60, queued=-1)
    shares.add("one", 2.0, tokens=-50, queued=-1)
    assert shares.virtual_s("two", 2.0) == 100 + 40
    assert shares.virtual_s("new", 2.0) == 140, "it begins where the only active one is"


def test_who_still_holds_something_is_not_forgotten():
    """An aborted request runs for another step, and what it held is taken off afterwards."""
    shares = Shares({})
    shares.add("aborted", 0.0, tokens=100, queued=1)
    shares.add("aborted", 0.0, tokens=0, queued=-1)
    shares.forget_idle(0.0)
    shares.add("aborted", 1.0, tokens=-100, queued=0)
    assert shares.virtual_s("aborted", 50.0) == 100


def test_of_two_queues_the_head_whose_tenant_is_less_ahead_goes_first():
    shares = Shares({UNTAGGED: 2.0})
    agents = [("a", 100, 0), ("b", 300, 1), ("a", 100, 2)]
    chat = [(UNTAGGED, 100, 3), (UNTAGGED, 100, 4), (UNTAGGED, 100, 5)]
    # Charged after each: a 100, untagged 50, b 300, untagged 100; b stood before the second of a.
    assert shares.merged(agents, chat, 0.0) == [0, 1, 3, 4, 2, 5]
    assert shares.merged([], chat, 0.0) == [3, 4, 5]


requests = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4000)), max_size=20).map(
    lambda drawn: [(tenant, tokens, i) for i, (tenant, tokens) in enumerate(drawn)]
)


@given(requests, st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 10.0)))
def test_everybody_is_placed_once_and_a_tenants_own_order_stays(requests, weights):
    order = Shares(weights).interleaved(requests, 0.0)
    assert sorted(order) == list(range(len(requests)))
    for wanted in "abc":
        own = [number for tenant, _, number in requests if tenant == wanted]
        assert [number for number in order if number in own] == own


@given(requests, st.lists(st.integers(1, 4000), max_size=9), st.floats(0.1, 10.0))
def test_merged_queues_keep_their_orders(agents, chat, weight):
    behind = [(UNTAGGED, tokens, len(agents) + i) for i, tokens in enumerate(chat)]
    order = Shares({UNTAGGED: weight}).merged(agents, behind, 0.0)
    assert [number for number in order if number < len(agents)] == list(range(len(agents)))
    assert [number for number in order if number >= len(agents)] == [n for _, _, n in behind]


@given(
    st.lists(
        st.tuples(
            *(st.sampled_from("ab"), st.floats(0.0, 10.0), st.integers(0, 1000), st.booleans())
        ),
        max_size=20,
    ),
    st.sampled_from([0, 50]),
)
def test_virtual_time_never_runs_backwards(steps, pool_tokens):
    """But for who was away."""
    shares, now_s = Shares({"a": 2.0}, pool_tokens), 0.0
    before = {"a": 0.0, "b": 0.0}
    idle_from_s: dict[str, float] = {}
    for tenant, passed_s, tokens, active in steps:
        now_s += passed_s
        shares.update(tenant, now_s, running_tokens=tokens, active=active)
        if now_s - idle_from_s.pop(tenant, now_s) <= CLAIM_S:
            assert shares.virtual_s(tenant, now_s) >= before[tenant] - 1e-9
        before[tenant] = shares.virtual_s(tenant, now_s)
        if not tokens and not active:
            idle_from_s[tenant] = now_s


class TestOrder:
    def test_with_one_tenant_it_is_by_age(self):
        queue = [Queued(False, 3, tokens=10), Queued(False, 1, tokens=10)]
        assert admission_order(queue, shares=Shares({})) == [1, 0]

    def test_who_takes_part_goes_before_those_outside_of_any_tenant(self):
        shares = Shares({})
        shares.update("busy", 0.0, running_tokens=100, active=True)
        shares.update("new", 0.0, running_tokens=1, active=True)
        queue = [
            Queued(False, 1, outside=True, tenant="new", tokens=10),
            Queued(False, 0, tenant="busy", tokens=10),
        ]
        assert admission_order(queue, shares=shares, now_s=10.0) == [1, 0]

    def test_of_those_that_take_part_the_tenant_that_had_less_goes_first(self):
        shares = Shares({})
        shares.update("busy", 0.0, running_tokens=100, active=True)
        shares.update("new", 0.0, running_tokens=1, active=True)
        queue = [
            Queued(False, 0, tenant="busy", tokens=10),
            Queued(False, 1, tenant="new", tokens=10),
        ]
        assert admission_order(queue, shares=shares, now_s=10.0) == [1, 0]
        assert admission_order(queue) == [0, 1]

    def test_untagged_requests_are_a_tenant_only_where_they_are_to_be_one(self):
        shares = Shares({UNTAGGED: 1.0})
        shares.update("busy", 0.0, running_tokens=100, active=True)
        shares.update(UNTAGGED, 0.0, running_tokens=1, active=True)
        queue = [
            Queued(False, 1, tenant="busy", tokens=10),
            Queued(False, 0, tenant="busy", tokens=10),
            None,
        ]
        assert admission_order(queue, shares=shares, now_s=10.0) == [1, 0, 2]
        as_tenant = {"untagged_tokens": {2: 10}, "now_s": 10.0}
        assert admission_order(queue, shares=shares, **as_tenant) == [2, 1, 0]

    def test_an_urgent_request_goes_first_of_a_tenant_too(self):
        queue = [Queued(False, 0, tokens=10), None, None]
        order = admission_order(
            queue, urgent={2}, shares=Shares({UNTAGGED: 0.1}), untagged_tokens={1: 10, 2: 10}
        )
        assert order == [2, 0, 1]

    def test_untagged_requests_that_waited_too_long_go_before_all(self):
        queue = [Queued(False, 0), None, Queued(False, 1), None]
        assert admission_order(queue, urgent={3}) == [3, 0, 1, 2]

    def test_a_tagged_request_is_never_urgent(self):
        assert admission_order([None, Queued(False, 0)], urgent={1}) == [0, 1]
