"""What a workload amounts to, before any server has seen it."""

import msgspec

from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.prefix_tree import least_prefill
from tokencake_sglang.replay.workload import Workload


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Counts, tokens and seconds; the bounds take nothing but the workload itself."""

    name: str
    applications: int
    agents: int
    requests: int
    untagged_requests: int
    prompt_tokens: int
    longest_prompt_tokens: int
    output_tokens: int
    least_prefill_tokens: int
    """Prompt tokens that even a cache that forgets nothing has to compute."""
    distinct_tokens: int
    """The KV that a cache that forgets nothing holds at the end."""
    tool_calls: int
    tool_wait_s: float
    tool_wait_p50_s: float
    tool_wait_p90_s: float
    tool_wait_p99_s: float
    longest_application_wait_s: float
    """Tools and pauses on the longest path of one application: its end-to-end time at infinite
    speed."""
    last_dispatch_s: float
    """When the last request is sent if every request takes no time."""
    most_open_applications: int
    """Applications under way at once if every request takes no time."""


def summarize(workload: Workload) -> Summary:
    instant = schedule(workload)
    order = sorted(workload.requests, key=lambda r: instant.dispatched_s[r.request_id])
    prefill, distinct = least_prefill(order)
    waits = sorted(r.call.wait_s for r in workload.requests if r.call is not None)

    def quantile(share: float) -> float:
        return waits[int(share * (len(waits) - 1))] if waits else 0.0

    tagged = [request for request in workload.requests if request.application is not None]
    return Summary(
        name=workload.name,
        applications=len({request.application for request in tagged}),
        agents=len({(request.application, request.agent) for request in tagged}),
        requests=len(workload.requests),
        untagged_requests=len(workload.requests) - len(tagged),
        prompt_tokens=workload.prompt_tokens,
        longest_prompt_tokens=max((r.prompt_length for r in workload.requests), default=0),
        output_tokens=workload.output_tokens,
        least_prefill_tokens=prefill,
        distinct_tokens=distinct,
        tool_calls=len(waits),
        tool_wait_s=round(sum(waits), 3),
        tool_wait_p50_s=quantile(0.5),
        tool_wait_p90_s=quantile(0.9),
        tool_wait_p99_s=quantile(0.99),
        longest_application_wait_s=round(max(instant.application_s.values(), default=0.0), 3),
        last_dispatch_s=round(max(instant.dispatched_s.values(), default=0.0), 3),
        most_open_applications=instant.most_open,
    )
