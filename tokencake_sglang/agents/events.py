"""Everything that can happen to an agent, as the messages that carry it.

The four signals come from agent programs; the request events and the tick are made by the
server's main process. Together, numbered and stamped, they are the log that every scheduler rank
replays: the same events in the same order give the same agent states everywhere.
"""

from typing import Annotated

import msgspec

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.identity import AgentKey, AgentTag, Name, field_of

MAX_SIGNAL_BYTES = 16 * 1024

Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=7 * 24 * 3600.0)]


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
    """The agent stopped at a tool call. ``predicted_s``: the caller's own estimate of its length."""

    call_id: Name
    tool: Name
    predicted_s: Seconds | None = None
    arguments_digest: Name | None = None


class CallFinish(AgentSignal, frozen=True, kw_only=True, tag="call_finish"):
    """The tool call returned; the agent's next request is on its way."""

    call_id: Name


class AgentFinish(AgentSignal, frozen=True, kw_only=True, tag="agent_finish"):
    """The agent will send no further request."""


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


Signal = CallStart | CallFinish | AgentFinish | ApplicationFinish
AnyEvent = Signal | RequestBegin | RequestEnd | Tick

SIGNALS: dict[str, type[Signal]] = {
    "call_start": CallStart,
    "call_finish": CallFinish,
    "agent_finish": AgentFinish,
    "application_finish": ApplicationFinish,
}


def parse_signal(value: object) -> Signal:
    """Validates a signal that came from outside, decoded to builtins.

    Raises:
        AgentError: naming the field and what would be accepted.
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
        raise AgentError(ErrorCode.INVALID_MESSAGE, field_of(error).lstrip(".: ")) from None
