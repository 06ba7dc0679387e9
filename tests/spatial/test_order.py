"""The order of admission."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.spatial.order import (
    MOST_ENTRY_S,
    Queued,
    admission_order,
    turn_to_enter_s,
)

queues = st.lists(
    st.none()
    | st.builds(
        Queued,
        critical=st.booleans(),
        application_order=st.integers(0, 5),
        began_s=st.integers(0, 3).map(float),
        remaining_s=st.none() | st.integers(0, 3).map(float),
    ),
    max_size=30,
)


def test_within_an_application_critical_agents_go_first():
    assert admission_order([Queued(False, 7), Queued(True, 7)]) == [1, 0]


def test_within_an_application_the_longest_way_left_goes_first():
    short, long = (Queued(False, 7, remaining_s=s) for s in (10.0, 60.0))
    assert admission_order([short, long]) == [1, 0]


def test_a_declared_critical_agent_goes_before_a_longer_way():
    long, critical = Queued(False, 7, remaining_s=60.0), Queued(True, 7, remaining_s=1.0)
    assert admission_order([long, critical]) == [1, 0]


def test_a_long_way_does_not_overtake_an_older_application():
    old, young = Queued(False, 0, remaining_s=1.0), Queued(False, 9, remaining_s=60.0)
    assert admission_order([old, young]) == [0, 1]


@given(queues)
def test_a_turn_is_passed_only_by_those_that_began_within_the_difference(queue):
    """The wait of a turn counts against the length of others' ways; nothing known is nothing left."""
    order = admission_order(queue)
    rank = {place: position for position, place in enumerate(order)}
    for i, one in enumerate(queue):
        for k, other in enumerate(queue[i + 1 :], start=i + 1):
            if one is None or other is None or rank[k] > rank[i]:
                continue
            if one.application_order != other.application_order or other.critical:
                continue
            difference_s = (other.remaining_s or 0.0) - (one.remaining_s or 0.0)
            assert other.began_s - one.began_s <= difference_s


def test_a_critical_agent_does_not_overtake_an_older_application():
    assert admission_order([Queued(False, 0), Queued(True, 9)]) == [0, 1]


def test_older_applications_go_before_younger_ones():
    assert admission_order([Queued(False, 3), Queued(False, 1)]) == [1, 0]


def test_newcomers_enter_after_those_that_take_part():
    newcomer, member = Queued(False, 1, outside=True), Queued(False, 3)
    assert admission_order([newcomer, member]) == [1, 0]


def test_of_newcomers_that_came_together_the_smallest_enters_first():
    large, small = (
        Queued(False, age, outside=True, enters_s=turn_to_enter_s(10.0, tokens))
        for age, tokens in ((0, 5000), (1, 4000))
    )
    assert admission_order([large, small]) == [1, 0]


def test_of_newcomers_that_came_together_the_one_that_declares_less_output_enters_first():
    """Whatever their first prompts are; one that declares nothing is judged by its own."""
    long, short, silent = (
        Queued(False, age, outside=True, enters_s=turn_to_enter_s(10.0, *tokens))
        for age, tokens in enumerate([(100, 9000), (50_000, 2000), (10_000, None)])
    )
    assert admission_order([long, short, silent]) == [1, 2, 0]


newcomers = st.tuples(
    st.floats(0.0, 300.0), st.integers(1, 100_000), st.none() | st.integers(0, 100_000)
)


@given(st.lists(newcomers, min_size=2, max_size=8))
def test_a_newcomer_is_passed_only_by_those_that_came_within_what_it_weighs(queued):
    queue = [
        Queued(False, age, outside=True, enters_s=turn_to_enter_s(*newcomer))
        for age, newcomer in enumerate(queued)
    ]
    order = admission_order(queue)
    for position, place in enumerate(order):
        for other in order[:position]:
            assert queued[other][0] <= turn_to_enter_s(*queued[place])


def test_what_a_newcomer_weighs_is_a_tenth_of_what_it_is_expected_to_take():
    """docs/spatial.md, "Ageing": 2 ms for each prompt token, or 4 ms for each declared one."""
    assert turn_to_enter_s(10.0, 1000) == pytest.approx(12.0)
    assert turn_to_enter_s(10.0, 1000, 2000) == pytest.approx(18.0)


def test_a_length_that_cannot_be_meant_keeps_nobody_outside_for_good():
    assert turn_to_enter_s(10.0, 1000, 2**53) == 10.0 + MOST_ENTRY_S


def test_untagged_requests_keep_their_places():
    assert admission_order([None, Queued(False, 3), None, Queued(False, 1)]) == [0, 3, 2, 1]


@given(queues)
def test_it_is_a_permutation_that_leaves_untagged_requests_where_they_are(queue):
    order = admission_order(queue)
    assert sorted(order) == list(range(len(queue)))
    assert all(order[i] == i for i, request in enumerate(queue) if request is None)


@given(queues)
def test_within_an_application_sglangs_order_stays(queue):
    order = admission_order(queue)
    for kind in {request for request in queue if request is not None}:
        places = [place for place in order if queue[place] == kind]
        assert places == sorted(places)


@given(queues)
def test_ordering_twice_changes_nothing(queue):
    once = [queue[place] for place in admission_order(queue)]
    assert admission_order(once) == list(range(len(queue)))
