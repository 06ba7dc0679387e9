"""When to start an upload."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.temporal.upload import (
    CRITICAL_QUANTILE,
    UploadTiming,
    headroom_tokens,
    upload_quantile,
)

# Qwen2.5-14B over PCIe 4: 25e9 B/s / 196,608 B per token.
LINK_TOKENS_PER_S = 25e9 / 196_608

costs = st.floats(0.01, 100.0)


def mean_cost(upload_by_s: float, returns_s: list[float], hold: float, late: float) -> float:
    """What an upload complete by then costs in the mean, of returns equally likely."""
    each = [
        hold * max(return_s - upload_by_s, 0.0) + late * max(upload_by_s - return_s, 0.0)
        for return_s in returns_s
    ]
    return sum(each) / len(each)


def test_an_upload_ends_its_lead_before_it_should_be_complete():
    timing = UploadTiming(link_tokens_per_s=LINK_TOKENS_PER_S, lead_s=0.2)
    start_s = timing.start_s(upload_by_s=100.0, host_tokens=127_157)  # one second of link
    assert math.isclose(start_s, 98.8, abs_tol=1e-4)


def test_a_forward_hides_what_the_link_carries_meanwhile():
    timing = UploadTiming(link_tokens_per_s=LINK_TOKENS_PER_S, lead_s=0.2)
    assert timing.hidden_tokens(0.02) == 2543
    assert timing.hidden_tokens(0.0) == 0, "nothing is known of forwards"


def test_an_upload_for_a_guess_leaves_more_than_one_that_was_promised():
    assert headroom_tokens(1000, promised=True) == 50
    assert headroom_tokens(1000, promised=False) == 400


def test_the_quantile_is_the_part_of_holding_in_both_costs():
    assert upload_quantile(1.0, 1.0) == 0.5, "equal costs: the median"
    assert upload_quantile(1.0, 3.0) == CRITICAL_QUANTILE == 0.25
    assert upload_quantile(2.0, 8.0) == 0.2
    assert upload_quantile(3.0, 1.0) == 0.75


def test_the_quantile_costs_least():
    """Back after 10, 20, 30, 40 or 50 s, lateness counting three times: the second of five."""
    returns_s = [10.0, 20.0, 30.0, 40.0, 50.0]
    expected = {10.0: 20.0, 20.0: 18.0, 30.0: 24.0, 40.0: 38.0, 50.0: 60.0}
    assert {at_s: mean_cost(at_s, returns_s, 1.0, 3.0) for at_s in returns_s} == expected
    assert min(expected, key=expected.__getitem__) == 20.0  # the smallest with P(T <= u) >= 0.25


@given(st.lists(st.floats(0.1, 1000.0), min_size=1, max_size=30), costs, costs)
def test_no_other_time_costs_less(returns_s, hold, late):
    returns_s.sort()
    place = math.ceil(upload_quantile(hold, late) * len(returns_s)) - 1
    costs = [mean_cost(at_s, returns_s, hold, late) for at_s in returns_s]
    assert costs[place] <= min(costs) * (1.0 + 1e-9)


@given(costs, costs, st.floats(1.0, 10.0))
def test_the_more_lateness_costs_the_earlier(hold, late, times):
    assert upload_quantile(hold, late * times) <= upload_quantile(hold, late)
