"""One application's requests and tool calls on a time axis, for a plot."""

import msgspec

from tokencake_sglang.replay.driver import Replay
from tokencake_sglang.replay.progress import Progress


class GanttRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request; virtual seconds. It waits from ``queued_s`` to ``admitted_s``, is prefilled
    until ``first_token_s``, decodes until ``finished_s``; its agent's call lasts until
    ``tool_end_s``. ``agent``: the request's id where it is untagged."""

    request_id: str
    agent: str
    queued_s: float
    admitted_s: float
    first_token_s: float
    finished_s: float
    tool: str | None = None
    tool_end_s: float | None = None


def median_application(application_s: dict[str, float]) -> str:
    """The application with the median time; of an even number, the slower of the middle two."""
    ordered = sorted(application_s, key=lambda name: (application_s[name], name))
    return ordered[len(ordered) // 2]


def gantt(replay: Replay, application: str | None = None) -> list[GanttRow]:
    """The rows of one application of a run that has ended, in the order of being queued.

    Args:
        application: default: the one with the median end-to-end time.

    Raises:
        KeyError: if there is no such application.
    """
    loop, requests = replay.loop, replay.warp.requests
    if application is None:
        application = median_application(
            {name: end_s - loop.started_s[name] for name, end_s in loop.ended_s.items()}
        )
    progress = Progress(replay.workload, lambda name: requests[name].finished_s)
    rows = []
    for request in replay.workload.applications[application]:
        done = requests[request.request_id]
        assert done.admitted_s is not None and done.first_token_s is not None
        assert done.finished_s is not None
        rows.append(
            GanttRow(
                request_id=request.request_id,
                agent=request.agent or request.request_id,
                queued_s=done.queued_s,
                admitted_s=done.admitted_s,
                first_token_s=done.first_token_s,
                finished_s=done.finished_s,
                tool=request.call.tool if request.call else None,
                tool_end_s=progress.settled_s(request.request_id) if request.call else None,
            )
        )
    return sorted(rows, key=lambda row: (row.queued_s, row.request_id))
