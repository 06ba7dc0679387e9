"""Least times of jobs on one machine that works off one second of work a second.

A job is its release and its work, both in seconds; the machine may be divided among jobs and may
leave one for another at any time.
"""

import heapq
from collections.abc import Mapping

from tokencake_sglang.replay.quantiles import quantile_index


def makespan_s(jobs: Mapping[str, tuple[float, float]]) -> float:
    """The least end of all: after any release, what is released from then on has to be done."""
    latest = remaining = 0.0
    for release, work in sorted(jobs.values(), reverse=True):
        remaining += work
        latest = max(latest, release + remaining)
    return latest


def shortest_first_mean_s(jobs: Mapping[str, tuple[float, float]]) -> float:
    """The least mean time from release to end: that of shortest remaining processing time first.

    Optimal by Schrage 1968, "A proof of the optimality of the shortest remaining processing time
    discipline", Operations Research 16(3); dividing the machine does not help either.
    """
    arrivals = sorted(jobs.values(), reverse=True)
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


def drained_s(jobs: Mapping[str, tuple[float, float]], q: float) -> float:
    """The least ``q``-quantile of the times from release to end.

    As many jobs as the quantile's place, at least, take no longer than the quantile, so all of
    these have ended so long after the last release. Their work, at the least that of the so many
    smallest jobs, has been done between the first release and then.
    """
    if not jobs:
        return 0.0
    releases = [release for release, _ in jobs.values()]
    smallest = sorted(work for _, work in jobs.values())
    done = quantile_index(len(jobs), q) + 1
    return max(0.0, sum(smallest[:done]) - (max(releases) - min(releases)))
