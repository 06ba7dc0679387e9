"""Times that no schedule of a workload can beat, on one server with a given cost model.

They hold for whatever ``CostModel`` prices a run, for every order, eviction and admission policy,
for any size of the host tier and with copies that take no time. Three lines of reasoning:

- *critical path*: an application takes at least its tools and pauses and, for each request on its
  longest path, a prefill of what no cache can have and one decode step a token, all alone.
- *work*: every application needs machine time that it shares with nobody (``application_work_s``),
  and one second of the machine is one second of work. So the makespan is at least the work that
  comes after any moment, the mean time of applications at least that of shortest remaining
  processing time first, and their 95 % quantile what working off the cheapest of them takes.
- *memory*: requests that decode together fill the pool with their distinct tokens, which limits
  how many share one reading of the weights; it is part of the work.
"""

import msgspec

from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.least_work import LeastWork, least_work
from tokencake_sglang.replay.one_machine import drained_s, makespan_s, shortest_first_mean_s
from tokencake_sglang.replay.quantiles import mean, quantile
from tokencake_sglang.replay.workload import Request, Workload
from tokencake_sglang.timewarp.cost import CostModel, Work


class BoundParts(msgspec.Struct, frozen=True, kw_only=True):
    """Each bound by itself, in seconds; 0 where it says nothing."""

    critical_path_mean_s: float
    critical_path_p95_s: float
    critical_path_makespan_s: float
    work_mean_s: float
    work_p95_s: float
    work_makespan_s: float


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
) -> Bounds:
    """The largest lower bound of each figure.

    Args:
        separate_forwards: a forward either prefills or decodes, as SGLang does unless it is given
            ``--enable-mixed-chunk``; else prefill may hide behind the memory traffic of decoding.
    """
    least = least_work(workload)
    alone = schedule(workload, lambda request: alone_s(request, least, cost))
    paths = list(alone.application_s.values())
    work = application_work_s(
        workload,
        least,
        cost,
        pool_tokens=pool_tokens,
        max_running_requests=max_running_requests,
        separate_forwards=separate_forwards,
    )
    # No application can be sent earlier than on a server that makes nobody wait.
    release: dict[str, float] = {}
    for name, at_s in alone.dispatched_s.items():
        group = workload.by_id[name].group
        release[group] = min(at_s, release.get(group, at_s))
    jobs = {name: (release[name], work[name]) for name in workload.applications}
    # Times from arrival to end can be bounded by work only where the arrival is known; one that
    # begins when another ends may begin late.
    known = _arrivals_are_given(workload)
    parts = BoundParts(
        critical_path_mean_s=mean(paths),
        critical_path_p95_s=quantile(paths, 0.95),
        critical_path_makespan_s=alone.makespan_s,
        work_mean_s=shortest_first_mean_s(jobs) if known else 0.0,
        work_p95_s=drained_s(jobs, 0.95) if known else 0.0,
        work_makespan_s=makespan_s(jobs),
    )
    return Bounds(
        end_to_end_mean_s=max(parts.critical_path_mean_s, parts.work_mean_s),
        end_to_end_p95_s=max(parts.critical_path_p95_s, parts.work_p95_s),
        makespan_s=max(parts.critical_path_makespan_s, parts.work_makespan_s),
        parts=parts,
        application_s={name: alone.application_s[name] for name in workload.applications},
    )


def critical_paths_s(workload: Workload, cost: CostModel) -> dict[str, float]:
    """Application → the least seconds from its first request to its end, alone on the server."""
    least = least_work(workload)
    return schedule(workload, lambda request: alone_s(request, least, cost)).application_s


def alone_s(request: Request, least: LeastWork, cost: CostModel) -> float:
    """The least seconds from sending a request to its last token.

    One prefill of what must be computed (chunks would read the weights again) and one decode step
    for each further token. A batch takes no less time than each request of it alone.
    """
    prompt_tokens = request.prompt_length
    new_tokens = least.requests[request.request_id].new_tokens
    prefill_s = cost.forward_s([Work(new_tokens, prompt_tokens - new_tokens)])
    steps = request.output_length - 1
    if steps < 1:
        return prefill_s
    # A step's time is the longer of two that grow linearly with the context, so it is convex, and
    # the steps together take at least their number times the one in the middle (Jensen).
    middle = prompt_tokens + (steps - 1) / 2
    return prefill_s + steps * cost.forward_s([Work(1, int(middle))])


def application_work_s(
    workload: Workload,
    least: LeastWork,
    cost: CostModel,
    *,
    pool_tokens: int,
    max_running_requests: int,
    separate_forwards: bool = True,
) -> dict[str, float]:
    """Application → machine seconds that only it can use.

    Prefill: the arithmetic of the stretches of prompt that only the application has, each once.
    Decode: for every token after the first the traffic of its context's KV, and a share of the
    step's fixed cost (one reading of the weights and the overhead). The requests of one step have
    shares that sum to at most one: a request's share is its least part of the pool, or else one
    in ``max_running_requests``, whichever rule makes the whole workload's work larger.
    """
    model, flops_per_s, bytes_per_s = cost.model, cost._flops_per_s, cost._bytes_per_s
    fixed_s = model.weight_bytes_read(1) / bytes_per_s + cost.hardware.step_overhead_s
    prefill: dict[str, float] = {}
    context: dict[str, float] = {}
    by_pool: dict[str, float] = {}
    by_count: dict[str, float] = {}
    for group, requests in workload.applications.items():
        flops = len(requests) * model.head_flops
        for start, length in least.prefill[group]:
            pairs = length * start + length * (length + 1) / 2
            flops += length * model.layer_flops_per_token + pairs * model.attention_flops_per_pair
        prefill[group] = flops / flops_per_s
        context[group] = by_pool[group] = by_count[group] = 0.0
        for request in requests:
            steps = request.output_length - 1
            generated = steps * (steps + 1) / 2  # step k holds k tokens beside the prompt
            kv_tokens = steps * request.prompt_length + generated
            held_tokens = steps * least.requests[request.request_id].held_tokens + generated
            context[group] += kv_tokens * model.kv_bytes_per_token / bytes_per_s
            by_pool[group] += fixed_s * held_tokens / pool_tokens
            by_count[group] += fixed_s * steps / max_running_requests
    share = by_pool if sum(by_pool.values()) > sum(by_count.values()) else by_count
    decode = {group: context[group] + share[group] for group in workload.applications}
    if separate_forwards:
        return {group: prefill[group] + decode[group] for group in workload.applications}
    return prefill if sum(prefill.values()) > sum(decode.values()) else decode


def _arrivals_are_given(workload: Workload) -> bool:
    """Whether no application waits for another one."""
    by_id = workload.by_id
    return all(
        by_id[name].group == request.group
        for request in workload.requests
        for name in request.names
    )
