"""The least times that the graph sets: of a request, from an application's start, and to its end.

A request takes at least a prefill of what no cache can have and one decode step for each further
token, all alone. So it is sent no sooner than on a server that makes nobody wait, and whatever
follows it takes as long as there.
"""

from collections.abc import Mapping

from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.least_work import LeastWork, least_work
from tokencake_sglang.replay.workload import Request, Workload
from tokencake_sglang.timewarp.cost import CostModel, Work


def critical_paths_s(workload: Workload, cost: CostModel) -> dict[str, float]:
    """Application → the least seconds from its first request to its end, alone on the server."""
    least = least_work(workload)
    return schedule(workload, lambda request: alone_s(request, least, cost)).application_s


def alone_s(request: Request, least: LeastWork, cost: CostModel) -> float:
    """The least seconds from sending a request to its last token."""
    return prefill_s(request, least, cost) + decode_s(request, cost, 0, request.output_length - 1)


def prefill_s(request: Request, least: LeastWork, cost: CostModel) -> float:
    """The least seconds until its first token: one prefill of what must be computed.

    Chunks would read the weights again, and a batch takes no less time than each request alone.
    """
    new_tokens = least.requests[request.request_id].new_tokens
    return cost.forward_s([Work(new_tokens, request.prompt_length - new_tokens)])


def decode_s(request: Request, cost: CostModel, first: int, end: int) -> float:
    """The least seconds of a request's decode steps ``first`` to ``end - 1``, alone.

    Step 0 makes the second token. A step's time is the longer of two that grow linearly with the
    context, so it is convex, and the steps together take at least their number times the one in
    the middle (Jensen).
    """
    steps = end - first
    if steps < 1:
        return 0.0
    middle = request.prompt_length + (first + end - 1) / 2
    return steps * cost.forward_s([Work(1, int(middle))])


def after_end_s(workload: Workload, alone: Mapping[str, float]) -> dict[str, float]:
    """Request → the least seconds from its last token until all that follows from it is settled.

    What follows may be of other applications, where those begin when this one ends.

    Args:
        alone: request → its least seconds, ``alone_s``.
    """
    followers: dict[str, list[Request]] = {}
    spawned: dict[str, list[Request]] = {}
    callers: dict[str, list[Request]] = {}
    for request in workload.requests:
        for name in request.wait_for:
            followers.setdefault(name, []).append(request)
        if request.spawned_by is not None:
            spawned.setdefault(request.spawned_by, []).append(request)
        for name in request.call.until if request.call else ():
            callers.setdefault(name, []).append(request)
    after_end: dict[str, float] = {}
    after_settled: dict[str, float] = {}

    def through(request: Request) -> float:
        return request.delay_s + alone[request.request_id] + after_end[request.request_id]

    def settled(name: str) -> float:
        """From the moment when ``name`` is settled."""
        if name not in after_settled:
            ways = [through(request) for request in followers.get(name, ())]
            ways += [_wait_s(r) + settled(r.request_id) for r in callers.get(name, ())]
            after_settled[name] = max(ways, default=0.0)
        return after_settled[name]

    # In this order whatever can be sent only after a request is known before it.
    for name in reversed(schedule(workload).dispatched_s):
        ways = [through(request) for request in spawned.get(name, ())]
        after_end[name] = max(_wait_s(workload.by_id[name]) + settled(name), *ways, 0.0)
    return after_end


def _wait_s(request: Request) -> float:
    return request.call.wait_s if request.call is not None else 0.0
