"""The mean of busy dates against all schedules of small jobs."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake_sglang.replay.busy_dates import mean_busy_dates_s, mean_s
from tokencake_sglang.replay.one_machine import Job, Piece, makespan_s, served

PIECES = st.builds(
    Piece, st.integers(0, 6).map(float), st.integers(1, 3).map(float), st.integers(0, 6).map(float)
)
JOBS = st.lists(st.lists(PIECES, min_size=1, max_size=3), min_size=1, max_size=3)


def schedules(pieces: Sequence[Piece]) -> list[list[tuple[int, float, float]]]:
    """In every order of precedence; an optimum of each figure below is among them."""
    return [list(served(pieces, rank)) for rank in itertools.permutations(range(len(pieces)))]


def dates(pieces: Sequence[Piece], schedule: list[tuple[int, float, float]]) -> list[float]:
    total = [0.0] * len(pieces)
    for i, start, end in schedule:
        total[i] += (end - start) * (start + end) / 2
    return [sum_ / piece.work_s for sum_, piece in zip(total, pieces, strict=True)]


@settings(deadline=None)
@given(st.lists(st.tuples(PIECES, st.integers(1, 5)), min_size=1, max_size=5))
def test_the_most_weight_a_second_first_is_the_least_weighted_mean(weighted: list) -> None:
    pieces, weights = zip(*weighted, strict=True)

    def weighted_sum(of: list[float]) -> float:
        return sum(weight * date for weight, date in zip(weights, of, strict=True))

    found = weighted_sum(mean_busy_dates_s(pieces, weights))
    assert found == pytest.approx(min(weighted_sum(dates(pieces, s)) for s in schedules(pieces)))


@settings(deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=6), st.data())
def test_no_machine_that_is_divided_or_idle_has_a_smaller_one(
    pieces: list[Piece], data: st.DataObject
) -> None:
    """Seconds in which any share of the machine works at any piece that has begun."""
    weights = [data.draw(st.integers(1, 5)) for _ in pieces]
    left = [piece.work_s for piece in pieces]
    total, now = 0.0, 0
    while max(left) > 1e-9:
        able = [i for i, piece in enumerate(pieces) if piece.head_s <= now and left[i] > 1e-9]
        shares = [data.draw(st.integers(0, 3)) for _ in able]
        for i, share in zip(able, shares, strict=True):
            part = min(left[i], share / max(3, sum(shares)))
            left[i] -= part
            total += weights[i] / pieces[i].work_s * part * (now + 0.5)
        now += 1
        if now > 60:
            return
    least = mean_busy_dates_s(pieces, weights)
    assert sum(w * d for w, d in zip(weights, least, strict=True)) <= total + 1e-9


@settings(deadline=None)
@given(JOBS, st.integers(1, 6))
def test_no_order_of_the_pieces_has_a_smaller_mean(jobs: list[list[Piece]], rounds: int) -> None:
    jobs = jobs if sum(map(len, jobs)) <= 6 else jobs[:2]
    least = mean_s([Job(0.0, 0.0, tuple(pieces)) for pieces in jobs], rounds)
    pieces = [piece for of_job in jobs for piece in of_job]
    job_of = [k for k, of_job in enumerate(jobs) for _ in of_job]
    for schedule in schedules(pieces):
        ends = [0.0] * len(jobs)
        for i, _, end in schedule:
            ends[job_of[i]] = max(ends[job_of[i]], end + pieces[i].tail_s)
        assert least <= sum(ends) / len(jobs) + 1e-9


@settings(deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=6))
def test_the_makespan_is_that_of_the_best_order_and_of_the_worst_set(pieces: list[Piece]) -> None:
    found = makespan_s(pieces)
    ends = [max(end + pieces[i].tail_s for i, _, end in s) for s in schedules(pieces)]
    sets = (s for n in range(1, len(pieces) + 1) for s in itertools.combinations(pieces, n))
    assert found == min(ends)
    assert found == max(
        min(p.head_s for p in s) + sum(p.work_s for p in s) + min(p.tail_s for p in s) for s in sets
    )


def test_tails_are_added_to_the_mean_time_of_the_work() -> None:
    """Two jobs of four seconds: work at a mean of 2 and 6, then half an hour and nothing."""
    short, long = Piece(0.0, 4.0, 0.0), Piece(0.0, 4.0, 1800.0)
    assert mean_s([Job(0.0, 4.0, (short,)), Job(0.0, 1804.0, (long,))]) == 904.0


def test_heads_are_waited_for() -> None:
    late = Job(1.0, 6.0, (Piece(6.0, 1.0, 0.0),))
    assert mean_s([late]) == 5.5


def test_weights_move_to_what_ends_a_job() -> None:
    """Half of the work can be done at any time: at first it counts as much as the other half."""
    job = Job(0.0, 100.0, (Piece(0.0, 1.0, 0.0), Piece(50.0, 1.0, 49.0)))
    assert mean_s([job], rounds=1) == pytest.approx((0.5 + 99.5) / 2)
    assert 90.0 < mean_s([job]) <= 99.5


def test_a_job_without_work_of_its_own_takes_its_time_alone() -> None:
    busy = Job(0.0, 7.0, (Piece(0.0, 4.0, 3.0),))
    assert mean_s([busy, Job(2.0, 11.0, ())]) == (5.0 + 11.0) / 2
    assert mean_s([]) == 0.0
