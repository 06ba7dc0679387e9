"""The least mean time of jobs whose work is in pieces with heads and tails, by mean busy dates.

Whatever is done of a piece at time t, its job ends at t plus the tail, or later. So a job ends no
sooner than the average of that over its work, with weights as one likes:

    C_j >= sum over its pieces p of w_p (M_p + q_p),    w_p >= 0,    sum of w_p = 1,

where q_p is the piece's tail and M_p its *mean busy date*, the mean of the times at which it is
worked at. The sum of w_p M_p over all pieces of all jobs is least if the machine always works at
that piece, of those whose heads have passed, which has the highest weight per second of work
(Goemans 1997, "Improved approximation algorithms for scheduling with release dates", SODA, pp.
591-598, who bounds completions by it, too; here with pieces of jobs, and with tails). So every
choice of weights gives a bound: a concave function of them, whose slope along w_p is M_p + q_p.
"""

import math
from collections.abc import Collection, Sequence

from tokencake_sglang.replay.one_machine import Job, Piece, served

ROUNDS = 20
"""Choices of weights. For crowds of sessions the best of twenty is 2 to 4 % above the first; ten
more would add less than 0.1 %."""


def mean_s(jobs: Collection[Job], rounds: int = ROUNDS) -> float:
    """A lower bound of the mean time from release to end, the best of some choices of weights.

    Weights are in proportion to the work at first. Then those of pieces that end their job late
    are raised and the others lowered, by less each time.
    """
    if not jobs:
        return 0.0
    busy = [job for job in jobs if job.pieces]
    idle_s = sum(job.alone_s for job in jobs if not job.pieces)
    pieces = [piece for job in busy for piece in job.pieces]
    weights = [_shares([piece.work_s for piece in job.pieces]) for job in busy]
    best_s = 0.0
    for number in range(1, rounds + 1):
        flat = [weight for of_job in weights for weight in of_job]
        dates = iter(mean_busy_dates_s(pieces, flat))
        total_s = idle_s
        for k, job in enumerate(busy):
            ends_s = [next(dates) + piece.tail_s - job.release_s for piece in job.pieces]
            mean_s = math.fsum(w * end_s for w, end_s in zip(weights[k], ends_s, strict=True))
            total_s += mean_s
            weights[k] = _moved(weights[k], [end_s - mean_s for end_s in ends_s], number)
        best_s = max(best_s, total_s / len(jobs))
    return best_s


def mean_busy_dates_s(pieces: Sequence[Piece], weights: Sequence[float]) -> list[float]:
    """Of each piece, in the schedule in which their sum times the weights is least."""
    done = [0.0] * len(pieces)
    rank = [-weight / piece.work_s for weight, piece in zip(weights, pieces, strict=True)]
    for i, start_s, end_s in served(pieces, rank):
        done[i] += (end_s - start_s) * (start_s + end_s) / 2
    return [total / piece.work_s for total, piece in zip(done, pieces, strict=True)]


def _moved(weights: list[float], late_s: list[float], number: int) -> list[float]:
    """Weights times 1 to 2, falling with the root of the round, for the latest; at least 1/4."""
    most_s = max(map(abs, late_s))
    if not most_s:
        return weights
    step = 1 / math.sqrt(number) / most_s
    return _shares([w * max(0.25, 1 + step * s) for w, s in zip(weights, late_s, strict=True)])


def _shares(values: list[float]) -> list[float]:
    total = math.fsum(values)  # the same in every version of Python, unlike sum
    return [value / total for value in values]
