"""Small workloads by hand."""

from typing import Any

from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Header, Request, ToolCall, Workload

HEADER = Header(name="test", source="by hand", licence="Apache-2.0")


def request(name: str, *, after: str = "", tool_s: float | None = None, **fields: Any) -> Request:
    """A request of application ``app`` that follows the requests named in ``after``."""
    wait_for = tuple(after.split())
    if not wait_for and "spawned_by" not in fields:
        fields.setdefault("arrival_s", 0.0)
    if tool_s is not None:
        fields["call"] = ToolCall(tool="search", wait_s=tool_s, declared_s=tool_s)
    fields.setdefault("application", "app")
    fields.setdefault("agent", name if fields["application"] else None)
    fields.setdefault("prompt", (Span("app/context", 0, 10),))
    fields.setdefault("output", (Span(f"{name}/output", 0, 5),))
    return Request(request_id=name, wait_for=wait_for, **fields)


def workload(*requests: Request) -> Workload:
    return Workload(HEADER, requests)
