"""How much memory a workload's agents fill at once."""

from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.prefix_tree import PrefixTree
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Workload

TOKEN_S = 0.03
"""Seconds that an output token takes, as in ``arrivals.lanes``."""


def peak_tokens(workload: Workload) -> int:
    """The most distinct tokens that the contexts of all agents under way have at once.

    An agent is under way from its first request until the end of its last, its calls and pauses
    included; its context is its latest prompt and output. On a server that makes nobody wait.
    """
    run = schedule(workload, lambda request: request.output_length * TOKEN_S)
    leaves_s: dict[tuple[str, str | None], float] = {}
    for request in workload.requests:
        agent = request.group, request.agent
        leaves_s[agent] = max(run.finished_s[request.request_id], leaves_s.get(agent, 0.0))
    contexts: dict[tuple[str, str | None], tuple[Span, ...]] = {}
    peak = 0
    for name, now_s in run.dispatched_s.items():
        request = workload.by_id[name]
        contexts = {agent: spans for agent, spans in contexts.items() if leaves_s[agent] > now_s}
        contexts[request.group, request.agent] = (*request.prompt, *request.output)
        tree = PrefixTree()
        for spans in contexts.values():
            tree.insert(spans)
        peak = max(peak, tree.tokens)
    return peak
