"""Least times on one machine that works off one second of work a second.

The machine may be divided among pieces of work and may leave one for another at any time.
"""

import heapq
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from tokencake_sglang.replay.quantiles import quantile_index


class Piece(NamedTuple):
    """``work_s`` seconds of the machine, none of them before ``head_s``; whatever is done of it,
    its job ends ``tail_s`` later or later still. All in seconds; work is more than none."""

    head_s: float
    work_s: float
    tail_s: float


class Job(NamedTuple):
    """``alone_s``: from its release to its end, at least."""

    release_s: float
    alone_s: float
    pieces: tuple[Piece, ...]

    @property
    def work_s(self) -> float:
        return sum(piece.work_s for piece in self.pieces)


def makespan_s(pieces: Collection[Piece]) -> float:
    """The least end of all: the piece with the longest tail first.

    Jackson's preemptive schedule; it ends at the largest sum, over sets of pieces, of the least
    head, the work and the least tail. Carlier 1982, "The one-machine sequencing problem", European
    Journal of Operational Research 11(1).
    """
    ordered = list(pieces)
    latest = 0.0
    for i, _, end_s in served(ordered, [-piece.tail_s for piece in ordered]):
        latest = max(latest, end_s + ordered[i].tail_s)
    return latest


def served(pieces: Sequence[Piece], rank: Sequence[float]) -> Iterator[tuple[int, float, float]]:
    """Which piece is worked at from when to when, if always that of lowest rank that can be."""
    arrivals = sorted(range(len(pieces)), key=lambda i: pieces[i].head_s, reverse=True)
    left = [piece.work_s for piece in pieces]
    active: list[tuple[float, int]] = []
    now = 0.0
    while arrivals or active:
        if not active:
            now = max(now, pieces[arrivals[-1]].head_s)
        while arrivals and pieces[arrivals[-1]].head_s <= now:
            i = arrivals.pop()
            heapq.heappush(active, (rank[i], i))
        _, i = active[0]
        until = now + left[i]
        if arrivals and pieces[arrivals[-1]].head_s < until:
            until = pieces[arrivals[-1]].head_s
            left[i] -= until - now
        else:
            heapq.heappop(active)
        yield i, now, until
        now = until


def shortest_first_mean_s(jobs: Collection[Job]) -> float:
    """The least mean time from release to end: that of shortest remaining processing time first.

    Optimal by Schrage 1968, "A proof of the optimality of the shortest remaining processing time
    discipline", Operations Research 16(3); dividing the machine does not help either.
    """
    arrivals = sorted(((job.release_s, job.work_s) for job in jobs), reverse=True)
    active: list[tuple[float, float]] = []
    now = total = 0.0
    while arrivals or active:
        if not active:
            now = max(now, arrivals[-1][0])
        while arrivals and arrivals[-1][0] <= now:
            release, work = arrivals.pop()
            heapq.heappush(active, (work, release))
        work, release = heapq.heappop(active)
        until = min(now + work, arrivals[-1][0]) if arrivals else now + work
        if until < now + work:
            heapq.heappush(active, (now + work - until, release))
        else:
            total += until - release
        now = until
    return total / len(jobs) if jobs else 0.0


def drained_s(jobs: Collection[Job], q: float) -> float:
    """The least ``q``-quantile of the times from release to end.

    As many jobs as the quantile's place, at least, take no longer than the quantile, so all of
    these have ended so long after the last release. Their work, at the least that of the so many
    smallest jobs, has been done from the first head on, and by the shortest tail before then.
    """
    pieces = [piece for job in jobs for piece in job.pieces]
    smallest = sorted(job.work_s for job in jobs)
    work_s = sum(smallest[: quantile_index(len(smallest), q) + 1]) if pieces else 0.0
    if not work_s:
        return 0.0
    begun_s = min(piece.head_s for piece in pieces)
    ended_s = begun_s + work_s + min(piece.tail_s for piece in pieces)
    return max(0.0, ended_s - max(job.release_s for job in jobs))
