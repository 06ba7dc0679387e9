"""What applications of a workload can declare of themselves: graphs, and how much they generate."""

import random

from tokencake_sglang.agents.events import Graph, GraphNode
from tokencake_sglang.replay.critical_path import alone_s
from tokencake_sglang.replay.least_work import least_work
from tokencake_sglang.replay.workload import Request, Workload
from tokencake_sglang.timewarp.cost import CostModel


def declared_graphs(workload: Workload, cost: CostModel) -> dict[str, Graph]:
    """Application → its agents as nodes, each with the seconds that it takes alone on the server.

    That is its requests' prefill and decoding, the calls as they were declared (where they were
    not, as long as they take) and pauses; waiting, of which nobody knows beforehand, is not in it.
    """
    least = least_work(workload)
    graphs: dict[str, Graph] = {}
    for application, requests in workload.applications.items():
        seconds: dict[str, float] = {}
        after: dict[str, dict[str, None]] = {}
        for request in requests:
            if request.agent is None:
                continue
            own_s = alone_s(request, least, cost) + request.delay_s + _call_s(request)
            seconds[request.agent] = seconds.get(request.agent, 0.0) + own_s
            before = after.setdefault(request.agent, {})
            for name in (*request.wait_for, *filter(None, [request.spawned_by])):
                other = workload.by_id[name]
                if other.application == application and other.agent not in (None, request.agent):
                    before[str(other.agent)] = None
        if seconds:
            graphs[application] = tuple(
                GraphNode(name=agent, after=tuple(after[agent]), expected_s=seconds[agent])
                for agent in seconds
            )
    return graphs


def declared_outputs(workload: Workload, spread: float) -> dict[str, int]:
    """Application → the output tokens of its requests together, as it would say beforehand.

    Args:
        spread: how far off it is, as the standard deviation of the binary logarithm; always the
            same for the same application.
    """
    return {
        application: round(
            sum(request.output_length for request in requests)
            * 2 ** random.Random(application).gauss(0.0, spread)
        )
        for application, requests in workload.applications.items()
        if requests[0].application is not None
    }


def _call_s(request: Request) -> float:
    call = request.call
    if call is None:
        return 0.0
    return call.wait_s if call.declared_s is None else call.declared_s
