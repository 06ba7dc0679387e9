"""Everything that can happen to an agent, as the messages that carry it.

The signals come from agent programs; all other events are made by the server's main process.
Together, numbered and stamped, they are the log that every scheduler rank
replays: the same events in the same order give the same agent states everywhere.
"""

from collections import Counter
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from typing import Annotated

import msgspec

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.identity import AgentKey, AgentTag, Name, what_is_wrong

MAX_SIGNAL_BYTES = 16 * 1024
MAX_STAGES = 16
MAX_NODES = 256
WAYS_OF_PROGRESS = ("fraction", "remaining_s", "stage")

Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=7 * 24 * 3600.0)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Stages = Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_STAGES)]


class Event(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of all events."""


class AgentSignal(Event, frozen=True, kw_only=True):
    """A signal about one agent; without ``application`` the agent is its own application."""

    agent: Name
    application: Name | None = None

    @property
    def key(self) -> AgentKey:
        return AgentKey(self.application or self.agent, self.agent)


class CallStart(AgentSignal, frozen=True, kw_only=True, tag="call_start"):
    """The agent stopped at a tool call.

    ``predicted_s`` is the caller's own estimate of its length. ``arguments_digest`` stands for the
    arguments, ``arguments_size`` says how much they ask for, in a unit of the tool's own.
    ``stages`` are the names of the parts that it goes through, in order.
    """

    call_id: Name
    tool: Name
    predicted_s: Seconds | None = None
    arguments_digest: Name | None = None
    arguments_size: Size | None = None
    stages: Stages = ()

    def __post_init__(self) -> None:
        _check_distinct("stages", self.stages)


class CallProgress(AgentSignal, frozen=True, kw_only=True, tag="call_progress"):
    """How far a running call is, in exactly one of three ways.

    ``fraction`` of the call's time is over; ``remaining_s`` are left, by the caller's new
    estimate; or ``stage``, one of those that ``CallStart`` declared, begins.
    """

    call_id: Name
    fraction: Fraction | None = None
    remaining_s: Seconds | None = None
    stage: Name | None = None

    def __post_init__(self) -> None:
        given = [name for name in WAYS_OF_PROGRESS if getattr(self, name) is not None]
        if len(given) != 1:
            raise AgentError(
                ErrorCode.INVALID_MESSAGE,
                f"{', '.join(WAYS_OF_PROGRESS)}: expected exactly one of them, "
                f"got {' and '.join(given) or 'none'}",
            )


class CallFinish(AgentSignal, frozen=True, kw_only=True, tag="call_finish"):
    """The tool call returned; the agent's next request is on its way."""

    call_id: Name


class AgentFinish(AgentSignal, frozen=True, kw_only=True, tag="agent_finish"):
    """The agent will send no further request."""


class GraphNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place in an application's graph: what tags call ``node``, or else the agent's name.

    It begins when all of ``after`` are over, and is expected to take ``expected_s``, tool calls
    included.
    """

    name: Name
    after: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_NODES)] = ()
    expected_s: Seconds | None = None


Graph = Annotated[tuple[GraphNode, ...], msgspec.Meta(min_length=1, max_length=MAX_NODES)]


class ApplicationStart(Event, frozen=True, kw_only=True, tag="application_start"):
    """What the application is made of, before its first request or later; the latest one counts.

    ``expected_output_tokens`` is what all its requests together are expected to generate. At least
    one of it and ``graph`` is given.
    """

    application: Name
    graph: Graph | None = None
    expected_output_tokens: Size | None = None

    def __post_init__(self) -> None:
        if self.graph is None:
            if self.expected_output_tokens is None:
                raise AgentError(
                    ErrorCode.INVALID_MESSAGE,
                    "graph, expected_output_tokens: expected at least one of them, got none",
                )
            return
        names = [node.name for node in self.graph]
        _check_distinct("graph", names)
        known = set(names)
        for node in self.graph:
            for other in node.after:
                if other not in known:
                    raise AgentError(
                        ErrorCode.INVALID_MESSAGE,
                        f"graph: {node.name!r:.100} comes after {other!r:.100}, which is none of "
                        f"the graph's nodes; they are {', '.join(names)!s:.200}",
                    )
        try:
            TopologicalSorter({node.name: node.after for node in self.graph}).prepare()
        except CycleError as error:
            raise AgentError(
                ErrorCode.INVALID_MESSAGE,
                "graph: expected an order in which nodes can follow each other, got the circle "
                f"{' > '.join(reversed(error.args[1]))!s:.200}",
            ) from None


class ApplicationFinish(Event, frozen=True, kw_only=True, tag="application_finish"):
    """No agent of the application will send a further request."""

    application: Name


class RequestBegin(Event, frozen=True, kw_only=True, tag="request_begin"):
    """A tagged request reached the server (before it is tokenised and dispatched)."""

    rid: str
    tag: AgentTag


class RequestEnd(Event, frozen=True, kw_only=True, tag="request_end"):
    """The request was answered, refused or aborted."""

    rid: str


class Tick(Event, frozen=True, kw_only=True, tag="tick"):
    """Time passed: no rank reads a clock of its own."""


class DurationsKnown(Event, frozen=True, kw_only=True, tag="durations_known"):
    """What earlier runs of the server learnt of calls' lengths: a stored ``DurationModel``."""

    state: bytes


Signal = CallStart | CallProgress | CallFinish | AgentFinish | ApplicationStart | ApplicationFinish
AnyEvent = Signal | RequestBegin | RequestEnd | Tick | DurationsKnown

SIGNALS: dict[str, type[Signal]] = {
    "call_start": CallStart,
    "call_progress": CallProgress,
    "call_finish": CallFinish,
    "agent_finish": AgentFinish,
    "application_start": ApplicationStart,
    "application_finish": ApplicationFinish,
}


def parse_signal(value: object) -> Signal:
    """Validates a signal that came from outside, decoded to builtins.

    Raises:
        AgentError: naming the field, what it has and what would be accepted.
    """
    if not isinstance(value, dict):
        raise AgentError(
            ErrorCode.INVALID_MESSAGE, f"expected an object, got {type(value).__name__}"
        )
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in SIGNALS:
        raise AgentError(
            ErrorCode.INVALID_MESSAGE,
            f"type: expected one of {', '.join(SIGNALS)}, got {kind!r:.100}",
        )
    signal_type = SIGNALS[kind]
    accepted = ("type", *signal_type.__struct_fields__)
    for name in value:
        if name not in accepted:
            raise AgentError(
                ErrorCode.INVALID_MESSAGE,
                f"{name!s:.100}: unknown field of {kind}; accepted are {', '.join(accepted)}",
            )
    try:
        return msgspec.convert(value, signal_type)
    except msgspec.ValidationError as error:
        reason = what_is_wrong(error, value).lstrip(".: ")
        raise AgentError(ErrorCode.INVALID_MESSAGE, reason) from None


def _check_distinct(field: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise AgentError(
            ErrorCode.INVALID_MESSAGE,
            f"{field}: expected distinct names, got {repeated[0]!r:.100} more than once",
        )
