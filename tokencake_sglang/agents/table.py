"""The state machine of agents and their calls.

The main process and every scheduler rank hold one each and apply the same events in the same
order, so they agree without talking. Signals may be lost, doubled, late, early or contradictory;
every transition has an answer for each, and a timeout.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tokencake_sglang.agents.alarms import Alarms
from tokencake_sglang.agents.declarations import Declarations
from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.events import (
    AgentFinish,
    AnyEvent,
    ApplicationFinish,
    ApplicationStart,
    CallFinish,
    CallProgress,
    CallStart,
    DurationsKnown,
    RequestBegin,
    RequestEnd,
    Tick,
)
from tokencake_sglang.agents.identity import AgentKey, AgentTag

CLOSED_CALLS_KEPT = 64
"""Closed calls an agent remembers, so that a late or repeated signal is recognised."""

OPEN_CALLS_MAX = 256
"""Open calls an agent can have: a program that never finishes one must not fill the memory."""

LONGEST_CALL_S = 7 * 24 * 3600.0

Signature = tuple[str, float | None, str | None, int | None, tuple[str, ...]]
"""What a repeated ``CallStart`` has to say again: its fields ``SIGNED``, in this order."""

SIGNED = ("tool", "predicted_s", "arguments_digest", "arguments_size", "stages")


class AgentState(StrEnum):
    ACTIVE = "active"
    """At least one request of it is queued or running."""
    STALLED = "stalled"
    """No request, at least one open tool call."""
    IDLE = "idle"
    """No request, no open call: its next move is unknown."""
    FINISHED = "finished"


class Change(StrEnum):
    """What an event did to an agent; the reason in the decision log."""

    REQUEST_BEGAN = "request_began"
    REQUEST_ENDED = "request_ended"
    CALL_STARTED = "call_started"
    CALL_PROGRESSED = "call_progressed"
    CALL_FINISHED = "call_finished"
    CALL_LAPSED = "call_lapsed"
    AGENT_FINISHED = "agent_finished"
    AGENT_FORGOTTEN = "agent_forgotten"


@dataclass(frozen=True, slots=True)
class Progress:
    """The latest report of a running call: one of the two, and when it came."""

    at_s: float
    fraction: float | None = None
    remaining_s: float | None = None


@dataclass(slots=True)
class Call:
    """One open tool call. Times are seconds on the main process's clock.

    ``stages_finished`` of the declared ``stages`` are over; the one that runs now, if there is one,
    has run since ``stage_started_s``.
    """

    call_id: str
    tool: str
    started_s: float
    predicted_s: float | None
    arguments_digest: str | None
    deadline_s: float
    arguments_size: int | None = None
    stages: tuple[str, ...] = ()
    stages_finished: int = 0
    stage_started_s: float = 0.0
    progress: Progress | None = None

    @property
    def signature(self) -> Signature:
        return (
            self.tool,
            self.predicted_s,
            self.arguments_digest,
            self.arguments_size,
            self.stages,
        )

    def last_stage(self, now_s: float) -> tuple[str, float] | None:
        """The last declared stage and its length, for a call that ends now while in it."""
        if not self.stages or self.stages_finished < len(self.stages) - 1:
            return None
        return self.stages[-1], now_s - self.stage_started_s


@dataclass(slots=True)
class Agent:
    """One agent. ``seen_order`` numbers agents, ``application_order`` applications, by first sight.

    There may be very many: what most of them have none of, or one, is kept in tuples.
    """

    key: AgentKey
    agent_type: str
    node: str | None
    critical: bool
    tenant: str | None
    seen_order: int
    application_order: int
    last_event_s: float
    rids: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()  # the open ones, the oldest first
    turns: int = 0
    finished: bool = False
    _closed_calls: dict[str, Signature] | None = None

    @property
    def state(self) -> AgentState:
        if self.finished:
            return AgentState.FINISHED
        if self.rids:
            return AgentState.ACTIVE
        return AgentState.STALLED if self.calls else AgentState.IDLE

    @property
    def closed_calls(self) -> Mapping[str, Signature]:
        """Remembered ones by id, the oldest first."""
        return self._closed_calls or {}

    def open_call(self, call_id: str) -> Call | None:
        return next((call for call in self.calls if call.call_id == call_id), None)

    def _close(self, call: Call) -> None:
        self.calls = tuple(other for other in self.calls if other is not call)
        if self._closed_calls is None:
            self._closed_calls = {}
        self._closed_calls[call.call_id] = call.signature
        while len(self._closed_calls) > CLOSED_CALLS_KEPT:
            del self._closed_calls[next(iter(self._closed_calls))]


@dataclass(frozen=True, slots=True)
class Transition:
    """One consequence of an event; ``call`` for the call it opened, refined or closed.

    ``ended_stage`` is a stage of that call which ended by it, with its length in seconds. None also
    where several ended at once, for then no single length is known.
    """

    agent: Agent
    change: Change
    call: Call | None = None
    ended_stage: tuple[str, float] | None = None


class AgentTable:
    """All agents known, bounded by ``max_agents``.

    Args:
        call_timeout_s: an open call is given up after this long without a report of its progress,
            or after four times its predicted length where that is longer (at most a week).
        agent_timeout_s: an agent without request or call is forgotten after this long.
        max_agents: above it the agents longest without an event are forgotten, except those
            with a request or an open call.
    """

    def __init__(
        self, *, call_timeout_s: float, agent_timeout_s: float, max_agents: int = 65_536
    ) -> None:
        self.call_timeout_s = call_timeout_s
        self.agent_timeout_s = agent_timeout_s
        self.max_agents = max_agents
        self.now_s = 0.0
        self._agents: OrderedDict[AgentKey, Agent] = OrderedDict()  # oldest event first
        self._applications: dict[str, tuple[Agent, ...]] = {}  # by first sight
        self._by_rid: dict[str, AgentKey] = {}
        self._deadlines: Alarms[AgentKey] = Alarms()  # the soonest of an agent's open calls
        self._next_order = 0
        self._declared = Declarations(agent_timeout_s)

    def __len__(self) -> int:
        return len(self._agents)

    def __iter__(self) -> Iterator[Agent]:
        return iter(self._agents.values())

    def get(self, key: AgentKey) -> Agent | None:
        return self._agents.get(key)

    def by_rid(self, rid: str) -> Agent | None:
        """The agent whose request ``rid`` is outstanding."""
        key = self._by_rid.get(rid)
        return None if key is None else self._agents.get(key)

    def of_application(self, application: str) -> list[Agent]:
        """Its agents, in the order in which they were first seen; empty when it is unknown."""
        return list(self._applications.get(application, ()))

    def declared(self, application: str) -> ApplicationStart | None:
        """What the application declared last; None if it did not, or is over."""
        return self._declared.get(application)

    @property
    def open_calls(self) -> int:
        """How many agents have an open tool call."""
        return len(self._deadlines)

    @property
    def open_requests(self) -> int:
        """How many tagged requests are queued or running."""
        return len(self._by_rid)

    def apply(self, event: AnyEvent, now_s: float) -> list[Transition]:
        """Applies one event and returns its consequences for agents; empty for a repeat.

        What an application declares has none, nor has its finish where all its agents have finished
        before: whether there is anything new in them, ``declared`` tells beforehand.

        Raises:
            AgentError: on a signal that contradicts what is known; nothing is changed then.
        """
        match event:
            case Tick():  # first, for they are the greater part of the log
                self.now_s = max(self.now_s, now_s)
                return self._expire()
            case RequestBegin():
                transitions = self._request_begin(event, now_s)
            case RequestEnd():
                transitions = self._request_end(event, now_s)
            case CallStart():
                transitions = self._call_start(event, now_s)
            case CallProgress():
                transitions = self._call_progress(event, now_s)
            case CallFinish():
                transitions = self._call_finish(event, now_s)
            case AgentFinish():
                agent = self._known(event.key)
                transitions = [] if agent.finished else [self._finish(agent, now_s)]
            case ApplicationStart():
                transitions = []  # nothing happened to an agent
                self._declared.keep(event, now_s)
            case ApplicationFinish():
                transitions = self._application_finish(event, now_s)
            case DurationsKnown():
                transitions = []  # of tools, not of agents
        self.now_s = max(self.now_s, now_s)
        return transitions

    # -- requests -----------------------------------------------------------------------------

    def _request_begin(self, event: RequestBegin, now_s: float) -> list[Transition]:
        owner = self.by_rid(event.rid)
        if owner is not None and owner.key == event.tag.key:
            return []
        # Another agent's id, used again: only one of them can ever be told to have ended.
        ended = self._request_end(RequestEnd(rid=event.rid), now_s) if owner is not None else []
        agent = self._agents.get(event.tag.key) or self._add(event.tag, now_s)
        agent.agent_type, agent.node = sys.intern(event.tag.agent_type), event.tag.node
        agent.critical, agent.tenant = event.tag.critical, event.tag.tenant
        agent.finished = False  # a request is never refused: the agent lives on
        # A request of an agent that still has calls open: the finish signal was lost or is late.
        transitions = [self._close(agent, call, now_s) for call in agent.calls]
        agent.rids = (*agent.rids, event.rid)
        self._by_rid[event.rid] = agent.key
        self._touch(agent, now_s)
        return [*ended, *transitions, Transition(agent, Change.REQUEST_BEGAN)]

    def _request_end(self, event: RequestEnd, now_s: float) -> list[Transition]:
        key = self._by_rid.pop(event.rid, None)
        agent = self._agents.get(key) if key is not None else None
        if agent is None:
            return []
        agent.rids = tuple(rid for rid in agent.rids if rid != event.rid)
        agent.turns += 1
        self._touch(agent, now_s)
        return [Transition(agent, Change.REQUEST_ENDED)]

    # -- signals ------------------------------------------------------------------------------

    def _known(self, key: AgentKey) -> Agent:
        agent = self._agents.get(key)
        if agent is None:
            raise AgentError(
                ErrorCode.UNKNOWN_AGENT,
                f"agent: {key.agent!r} of application {key.application!r} has sent no tagged "
                "request; tag its requests with the same application and agent first",
            )
        return agent

    def _call_start(self, event: CallStart, now_s: float) -> list[Transition]:
        agent = self._known(event.key)
        signature = (
            event.tool,
            event.predicted_s,
            event.arguments_digest,
            event.arguments_size,
            event.stages,
        )
        earlier = agent.open_call(event.call_id)
        known = earlier.signature if earlier else agent.closed_calls.get(event.call_id)
        if known is not None:
            if known == signature:
                return []
            raise AgentError(
                ErrorCode.CONTRADICTION,
                f"call_id: {event.call_id!r} was already started with other values "
                f"({', '.join(SIGNED)} = {known}); use a new call_id",
            )
        if agent.finished:
            raise AgentError(
                ErrorCode.AGENT_FINISHED,
                f"agent: {agent.key.agent!r} has finished; a new request would revive it",
            )
        if len(agent.calls) >= OPEN_CALLS_MAX:
            raise AgentError(
                ErrorCode.UNAVAILABLE,
                f"call_id: agent {agent.key.agent!r} has {len(agent.calls)} open calls, at most "
                f"{OPEN_CALLS_MAX} are kept; finish some first",
            )
        call = Call(
            event.call_id,
            sys.intern(event.tool),
            now_s,
            event.predicted_s,
            event.arguments_digest,
            now_s + min(self._patience_s(event.predicted_s), LONGEST_CALL_S),
            event.arguments_size,
            event.stages,
            stage_started_s=now_s,
        )
        agent.calls = (*agent.calls, call)
        self._set_deadline(agent)
        self._touch(agent, now_s)
        return [Transition(agent, Change.CALL_STARTED, call)]

    def _call_progress(self, event: CallProgress, now_s: float) -> list[Transition]:
        agent = self._known(event.key)
        call = self._open_call(agent, event.call_id)
        if call is None:
            return []
        ended_stage: tuple[str, float] | None = None
        if event.stage is not None:
            finished = self._stage_number(call, event.stage)
            if finished <= call.stages_finished:
                return []  # repeated, or overtaken by a later stage's
            if finished == call.stages_finished + 1:
                ended_stage = call.stages[finished - 1], now_s - call.stage_started_s
            call.stages_finished, call.stage_started_s = finished, now_s
        else:
            progress = Progress(now_s, event.fraction, event.remaining_s)
            if progress == call.progress:
                return []
            call.progress = progress
        # Whoever reports is alive.
        patient_s = now_s + self._patience_s(event.remaining_s)
        call.deadline_s = max(call.deadline_s, min(patient_s, call.started_s + LONGEST_CALL_S))
        self._set_deadline(agent)
        self._touch(agent, now_s)
        return [Transition(agent, Change.CALL_PROGRESSED, call, ended_stage)]

    @staticmethod
    def _stage_number(call: Call, stage: str) -> int:
        """How many of the call's stages are over once ``stage`` has begun."""
        if stage in call.stages:
            return call.stages.index(stage)
        declared = f"declared are {', '.join(call.stages)}" if call.stages else "none was declared"
        raise AgentError(
            ErrorCode.CONTRADICTION,
            f"stage: call {call.call_id!r} has no stage {stage!r}; {declared} (call_start.stages)",
        )

    def _patience_s(self, expected_s: float | None) -> float:
        return max(self.call_timeout_s, 4 * (expected_s or 0.0))

    def _call_finish(self, event: CallFinish, now_s: float) -> list[Transition]:
        agent = self._known(event.key)
        call = self._open_call(agent, event.call_id)
        return [] if call is None else [self._close(agent, call, now_s)]

    @staticmethod
    def _open_call(agent: Agent, call_id: str) -> Call | None:
        """None for a closed one: its signal is repeated, or came after the agent's next request."""
        call = agent.open_call(call_id)
        if call is None and call_id not in agent.closed_calls:
            raise AgentError(
                ErrorCode.UNKNOWN_CALL,
                f"call_id: agent {agent.key.agent!r} has no call {call_id!r}; "
                f"open calls are {sorted(call.call_id for call in agent.calls)[:8]}",
            )
        return call

    def _application_finish(self, event: ApplicationFinish, now_s: float) -> list[Transition]:
        if event.application not in self._applications:
            raise AgentError(
                ErrorCode.UNKNOWN_APPLICATION,
                f"application: no agent of {event.application!r} has sent a tagged request",
            )
        agents = self.of_application(event.application)
        transitions = [self._finish(agent, now_s) for agent in agents if not agent.finished]
        self._declared.drop(event.application)
        return transitions

    # -- bookkeeping --------------------------------------------------------------------------

    def _add(self, tag: AgentTag, now_s: float) -> Agent:
        # One string for all who are called alike: there are as many as agents.
        key = AgentKey(*map(sys.intern, tag.key))
        order = self._next_order
        self._next_order += 1
        others = self._applications.get(key.application, ())
        application_order = others[0].application_order if others else order
        agent = Agent(
            *(key, tag.agent_type, tag.node, tag.critical, tag.tenant),
            *(order, application_order, now_s),
        )
        self._agents[key] = agent
        self._applications[key.application] = (*others, agent)
        return agent

    def _touch(self, agent: Agent, now_s: float) -> None:
        agent.last_event_s = max(agent.last_event_s, now_s)
        self._agents.move_to_end(agent.key)

    def _set_deadline(self, agent: Agent) -> None:
        if agent.calls:
            self._deadlines.set(agent.key, min(call.deadline_s for call in agent.calls))
        else:
            self._deadlines.cancel(agent.key)

    def _close(
        self, agent: Agent, call: Call, now_s: float, change: Change = Change.CALL_FINISHED
    ) -> Transition:
        agent._close(call)
        self._set_deadline(agent)
        self._touch(agent, now_s)
        ended_stage = call.last_stage(now_s) if change is Change.CALL_FINISHED else None
        return Transition(agent, change, call, ended_stage)

    def _finish(self, agent: Agent, now_s: float) -> Transition:
        for call in agent.calls:
            agent._close(call)
        self._set_deadline(agent)
        agent.finished = True
        self._touch(agent, now_s)
        return Transition(agent, Change.AGENT_FINISHED)

    def _expire(self) -> list[Transition]:
        transitions = [
            self._close(agent, call, self.now_s, Change.CALL_LAPSED)
            for agent in [self._agents[key] for key in self._deadlines.pop_due(self.now_s)]
            for call in agent.calls
            if call.deadline_s <= self.now_s
        ]
        forgotten = self._forgettable()
        self._forget(forgotten)
        transitions += [Transition(agent, Change.AGENT_FORGOTTEN) for agent in forgotten]
        self._declared.expire(self._applications, self.now_s)
        return transitions

    def _forgettable(self) -> list[Agent]:
        """Quiet agents past their time, or above the size of the table, oldest first."""
        surplus = len(self._agents) - self.max_agents
        agents: list[Agent] = []
        for agent in self._agents.values():
            expired = agent.last_event_s + self.agent_timeout_s <= self.now_s
            if not expired and len(agents) >= surplus:
                break
            if not agent.rids and not agent.calls:
                agents.append(agent)
        return agents

    def _forget(self, agents: list[Agent]) -> None:
        for agent in agents:
            del self._agents[agent.key]
        # Each application once: thousands of its agents may go together.
        for application in dict.fromkeys(agent.key.application for agent in agents):
            known = self._applications[application]
            others = tuple(other for other in known if other.key in self._agents)
            if others:
                self._applications[application] = others
            else:
                del self._applications[application]
                self._declared.drop(application)
