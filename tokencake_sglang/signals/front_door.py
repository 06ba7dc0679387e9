"""The one place where events get their time and their number."""

import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import msgspec

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.events import (
    AnyEvent,
    ApplicationFinish,
    ApplicationStart,
    DurationsKnown,
    RequestBegin,
    RequestEnd,
    Signal,
    Tick,
    parse_signal,
)
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.agents.table import AgentState, AgentTable, Transition
from tokencake_sglang.config import TokencakeConfig

logger = logging.getLogger(__name__)

REFUSALS_KEPT = 32
HOLD_MARGIN_S = 2.0
"""Ticks go on for this long after the last hold should have ended: decisions are late, not early."""
HOUSEKEEPING_S = 10.0
"""Agents are forgotten by ticks alone, so one is sent this often while any agent is known."""


class Acknowledgement(msgspec.Struct, frozen=True):
    """What the sender of an accepted signal is told.

    ``sequence`` is the number the event got; for a repeat, which gets none, the latest one given.
    """

    sequence: int
    repeat: bool


class Refusal(msgspec.Struct, frozen=True):
    """One refused signal, for the status page. ``at_s`` is on the front door's clock."""

    at_s: float
    code: ErrorCode
    message: str


class FrontDoor:
    """Validates, stamps, numbers and passes on every event. Lives on one event loop; not locked.

    Args:
        send: called as ``send(sequence, stamp_s, event)`` for each event that changed something,
            in order, sequences counting from 1 without gaps and stamps never falling. A replica
            of the agent table that applies exactly these events equals this one. If it raises,
            the ranks miss an event: the signal is answered ``unavailable``, and since the agent
            table has it already, its repeat is acknowledged without being sent again.
        clock: seconds, any origin.
        durations: what earlier runs learnt of calls' lengths, for the first entry of the log.
        follow: called as ``follow(transition, stamp_s)`` for each consequence of an event, before
            that is sent: what a rank's planner is told, in the same order and at the same times.
    """

    def __init__(
        self,
        config: TokencakeConfig,
        send: Callable[[int, float, AnyEvent], None],
        clock: Callable[[], float],
        durations: bytes | None = None,
        follow: Callable[[Transition, float], None] | None = None,
    ) -> None:
        self.table = AgentTable(
            call_timeout_s=config.call_timeout_s, agent_timeout_s=config.agent_timeout_s
        )
        self._watches_untagged = (
            config.untagged_first_token_s is not None or config.untagged_weight > 0.0
        )
        self._untagged: set[str] = set()  # open requests without a tag
        self._ticks_after_call_s = config.hold_timeout_s + HOLD_MARGIN_S
        self._send = send
        self._clock = clock
        self._first = None if durations is None else DurationsKnown(state=durations)
        self._follow = follow
        self._sequence = 0
        self._stamp_s = clock()
        self._last_call_s: float | None = None
        self._last_tick_s = self._stamp_s
        self._accepted: Counter[str] = Counter()
        self._repeated: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._refusals: deque[Refusal] = deque(maxlen=REFUSALS_KEPT)
        self._send_failures = 0

    # -- the first entry ----------------------------------------------------------------------

    def open(self) -> None:
        """Sends what earlier runs learnt, if the first event has not yet. Never raises."""
        if self._first is None:
            return
        first, self._first = self._first, None
        try:
            self._pass_on(first, self._now_s())
        except AgentError as error:
            self.refuse(error)

    # -- signals ------------------------------------------------------------------------------

    def receive(self, value: object) -> Acknowledgement:
        """Validates and submits a signal that came from outside, decoded to builtins.

        Raises:
            AgentError: as :meth:`submit`, and for what is not a signal.
        """
        try:
            signal = parse_signal(value)
        except AgentError as error:
            self.refuse(error)
            raise
        return self.submit(signal)

    def submit(self, signal: Signal) -> Acknowledgement:
        """Applies a signal and hands it to ``send``; a repeat changes nothing and is not sent.

        Raises:
            AgentError: the signal contradicts what is known; nothing was changed or sent.
        """
        kind = str(type(signal).__struct_config__.tag)
        try:
            changed = self._apply(signal)
        except AgentError as error:
            self.refuse(error)
            raise
        (self._accepted if changed else self._repeated)[kind] += 1
        return Acknowledgement(self._sequence, repeat=not changed)

    def refuse(self, error: AgentError) -> None:
        """Counts and remembers a refusal; the doors call it for what never became a signal."""
        self._refused[error.code] += 1
        self._refusals.append(Refusal(self._now_s(), error.code, error.message))

    # -- requests -----------------------------------------------------------------------------

    def request_begin(self, tag: AgentTag | None, rid: str) -> None:
        """A request arrived. Never raises: a request is served whatever is known of it.

        Of one without a tag no rank is told.
        """
        if tag is None:
            self._untagged.add(rid)
        else:
            self._apply_request(RequestBegin(rid=rid, tag=tag))

    def request_end(self, rid: str) -> None:
        """The request was answered, refused or aborted. Idempotent; unknown ids are ignored."""
        if rid in self._untagged:
            self._untagged.remove(rid)
        else:
            self._apply_request(RequestEnd(rid=rid))

    def _apply_request(self, event: RequestBegin | RequestEnd) -> None:
        try:
            self._apply(event)
        except AgentError as error:
            self.refuse(error)

    # -- time ---------------------------------------------------------------------------------

    def needs_ticks(self) -> bool:
        """Whether a rank waits for time to pass: a call is open, an upload held, an agent known, or
        it has to see how long untagged requests have waited beside tagged ones, or held memory."""
        if self.table.open_calls:
            return True
        if self._watches_untagged and self._untagged and self.table.open_requests:
            return True
        if self._last_call_s is None and not self.table:
            return False
        now_s = self._now_s()
        if self._last_call_s is not None and now_s < self._last_call_s + self._ticks_after_call_s:
            return True
        return len(self.table) > 0 and now_s >= self._last_tick_s + HOUSEKEEPING_S

    def tick(self) -> None:
        """Tells every rank the time. Calls lapse and agents are forgotten by ticks alone."""
        try:
            self._apply(Tick())
        except AgentError as error:
            self.refuse(error)
        self._last_tick_s = self._stamp_s

    # -- status -------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Agents by state, counters and the latest refusals, as plain JSON values."""
        by_state = Counter(agent.state for agent in self.table)
        return {
            "agents": {str(state): by_state[state] for state in AgentState},
            "agents_in_calls": self.table.open_calls,
            "sequence": self._sequence,
            "send_failures": self._send_failures,
            "signals": {
                "accepted": dict(self._accepted),
                "repeated": dict(self._repeated),
                "refused": {str(code): count for code, count in self._refused.items()},
            },
            "refusals": [
                {
                    "seconds_ago": round(self._now_s() - refusal.at_s, 3),
                    "code": str(refusal.code),
                    "message": refusal.message,
                }
                for refusal in reversed(self._refusals)
            ],
        }

    # -- the way of every event ---------------------------------------------------------------

    def _now_s(self) -> float:
        """The clock, held from running backwards: ranks rely on stamps that never fall."""
        self._stamp_s = max(self._stamp_s, self._clock())
        return self._stamp_s

    def _apply(self, event: AnyEvent) -> bool:
        self.open()
        stamp_s = self._now_s()
        changes_no_agent = isinstance(event, Tick) or self._changes_what_is_declared(event)
        transitions = self.table.apply(event, stamp_s)
        if not transitions and not changes_no_agent:
            return False
        self._remember_calls(transitions, stamp_s)
        if self._follow is not None:
            for transition in transitions:
                self._follow(transition, stamp_s)
        self._pass_on(event, stamp_s)
        return True

    def _changes_what_is_declared(self, event: AnyEvent) -> bool:
        match event:
            case ApplicationStart():
                return event != self.table.declared(event.application)
            case ApplicationFinish():
                return self.table.declared(event.application) is not None
        return False

    def _pass_on(self, event: AnyEvent, stamp_s: float) -> None:
        self._sequence += 1
        try:
            self._send(self._sequence, stamp_s, event)
        except Exception as error:
            self._send_failures += 1
            logger.exception("event %d did not reach the scheduler", self._sequence)
            raise AgentError(
                ErrorCode.UNAVAILABLE, f"the scheduler could not be told: {error!r:.200}"
            ) from error

    def _remember_calls(self, transitions: list[Transition], stamp_s: float) -> None:
        if any(transition.call is not None for transition in transitions):
            self._last_call_s = stamp_s
