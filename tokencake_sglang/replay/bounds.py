"""Times that no schedule of a workload can beat, on one server with a given cost model.

They hold for whatever ``CostModel`` prices a run, for every order, eviction and admission policy,
for any size of the host tier and with copies that take no time. Four lines of reasoning:

- *critical path*: an application takes at least its tools and pauses and, for each request on its
  longest path, a prefill of what no cache can have and one decode step a token, all alone.
- *work*: every application needs machine time that it shares with nobody (``machine_work``), and
  one second of the machine is one second of work. So the mean time of applications is at least
  that of shortest remaining processing time first, and their 95 % quantile what working off the
  cheapest of them takes.
- *both*: before a piece of work there is the path that leads to it, its head, and after it the path
  from there to the application's end, its tail. So the makespan is at least that of a machine that
  does what has the longest tail first; and an application ends no sooner than the mean time at
  which its work is done plus the mean tail, which in the mean of applications is least where the
  machine does first what weighs most (Goemans 1997, ``busy_dates``). In a crowd this is the
  largest: the first line knows no queue, and the second takes an application for done as soon as
  its work could be.
- *memory*: requests that decode together fill the pool with their distinct tokens, which limits
  how many share one reading of the weights; it is part of the work.
"""

from collections.abc import Collection

import msgspec

from tokencake_sglang.replay.busy_dates import mean_s
from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.critical_path import alone_s
from tokencake_sglang.replay.least_work import least_work
from tokencake_sglang.replay.machine_work import machine_work
from tokencake_sglang.replay.one_machine import (
    Job,
    drained_s,
    makespan_s,
    shortest_first_mean_s,
)
from tokencake_sglang.replay.quantiles import mean, quantile
from tokencake_sglang.replay.workload import Workload
from tokencake_sglang.timewarp.cost import CostModel


class BoundParts(msgspec.Struct, frozen=True, kw_only=True):
    """Each bound by itself, in seconds; 0 where it says nothing."""

    critical_path_mean_s: float
    critical_path_p95_s: float
    critical_path_makespan_s: float
    work_mean_s: float
    work_p95_s: float
    work_makespan_s: float
    busy_dates_mean_s: float


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Lower bounds, in seconds; ``application_s`` is every application's critical path."""

    end_to_end_mean_s: float
    end_to_end_p95_s: float
    makespan_s: float
    parts: BoundParts
    application_s: dict[str, float]


def bounds(
    workload: Workload,
    cost: CostModel,
    *,
    pool_tokens: int,
    max_running_requests: int = 256,
    separate_forwards: bool = True,
    of: Collection[str] | None = None,
) -> Bounds:
    """The largest lower bound of each figure.

    Args:
        separate_forwards: a forward either prefills or decodes, as SGLang does unless it is given
            ``--enable-mixed-chunk``; else prefill may hide behind the memory traffic of decoding.
            (A token after a retraction comes from a prefill. That it may hide there is neglected.)
        of: the applications whose times from end to end are meant, at least one; by default all.
            Work of the others is taken to be done in between.
    """
    least = least_work(workload)
    alone = schedule(workload, lambda request: alone_s(request, least, cost))
    work = machine_work(
        workload,
        least,
        cost,
        alone,
        pool_tokens=pool_tokens,
        max_running_requests=max_running_requests,
        separate_forwards=separate_forwards,
    )
    chosen = [name for name in workload.applications if of is None or name in of]
    paths = [alone.application_s[name] for name in chosen]
    # No application can be sent earlier than on a server that makes nobody wait.
    release: dict[str, float] = {}
    for name, at_s in alone.dispatched_s.items():
        group = workload.by_id[name].group
        release[group] = min(at_s, release.get(group, at_s))
    # Times from arrival to end can be bounded by work only where the arrival is known; one that
    # begins when another ends may begin late.
    known = chosen if _arrivals_are_given(workload) else []
    jobs = [Job(release[name], alone.application_s[name], work[name]) for name in known]
    parts = BoundParts(
        critical_path_mean_s=mean(paths),
        critical_path_p95_s=quantile(paths, 0.95),
        critical_path_makespan_s=alone.makespan_s,
        work_mean_s=shortest_first_mean_s(jobs),
        work_p95_s=drained_s(jobs, 0.95),
        work_makespan_s=makespan_s([piece for pieces in work.values() for piece in pieces]),
        busy_dates_mean_s=mean_s(jobs),
    )
    return Bounds(
        end_to_end_mean_s=max(
            parts.critical_path_mean_s, parts.work_mean_s, parts.busy_dates_mean_s
        ),
        end_to_end_p95_s=max(parts.critical_path_p95_s, parts.work_p95_s),
        makespan_s=max(parts.critical_path_makespan_s, parts.work_makespan_s),
        parts=parts,
        application_s={name: alone.application_s[name] for name in workload.applications},
    )


def _arrivals_are_given(workload: Workload) -> bool:
    """Whether no application waits for another one."""
    by_id = workload.by_id
    return all(
        by_id[name].group == request.group
        for request in workload.requests
        for name in request.names
    )
