"""Seconds to the next use, of agents and of what no agent claims."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.temporal.next_use import STAMPS_KEPT, AccessClock, seconds_to_next_use
from tokencake_sglang.temporal.returns import Return


@pytest.mark.parametrize(
    ("has_request", "expected", "seconds"),
    [
        (True, Return(500.0, 90.0, promised=True), 0.0),
        (False, Return(130.0, 90.0, promised=True), 30.0),
        (False, Return(80.0, 70.0, promised=True), 20.0),  # overdue: as long again
        (False, Return(130.0, 90.0, promised=False), 40.0),  # as far as when it was looked at
        (False, None, 10.0),  # silent: as long again
    ],
)
def test_of_an_agent(has_request, expected, seconds):
    left_s = seconds_to_next_use(
        100.0, has_request=has_request, expected=expected, last_event_s=90.0
    )
    assert left_s == seconds


def test_a_stamp_of_this_very_step_is_not_in_the_future():
    left_s = seconds_to_next_use(100.0, has_request=False, expected=None, last_event_s=101.0)
    assert left_s == 0.0


def test_an_age_is_counted_from_the_last_stamp_before_the_access():
    clock = AccessClock()
    for count, stamp_s in ((10.0, 1.0), (20.0, 2.0), (30.0, 5.0)):
        clock.tell(count, stamp_s)
    assert clock.age_s(20.0, now_s=6.0) == 4.0
    assert clock.age_s(29.0, now_s=6.0) == 4.0
    assert clock.age_s(35.0, now_s=6.0) == 1.0
    assert clock.age_s(3.0, now_s=6.0) == 5.0, "older than all that is known: at least so old"


def test_a_clock_that_was_told_nothing_knows_no_age():
    assert AccessClock().age_s(3.0, now_s=6.0) == 0.0


@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 9)), min_size=2, max_size=60),
    st.lists(st.integers(0, 500), min_size=2, max_size=20),
)
def test_later_accesses_are_never_older(told, accesses):
    """Without tags the order of eviction is LRU."""
    clock = AccessClock()
    count, now_s = 0.0, 0.0
    for passed_s, accessed in told:
        count, now_s = count + accessed, now_s + passed_s
        clock.tell(count, now_s)
    ages = [clock.age_s(float(access), now_s) for access in sorted(accesses)]
    assert ages == sorted(ages, reverse=True)


def test_a_clock_is_bounded_and_stays_nearly_right():
    clock = AccessClock()
    for second in range(20 * STAMPS_KEPT):
        clock.tell(float(second), float(second))
    now_s = 20.0 * STAMPS_KEPT
    assert len(clock._stamps_s) <= STAMPS_KEPT
    assert clock.age_s(now_s - 10, now_s) == 10.0
    oldest = clock.age_s(now_s / 2, now_s)
    assert now_s / 2 <= oldest <= now_s
