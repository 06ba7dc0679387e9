"""Continuum / CacheTTL: a tool call pins the agent's KV for as long as that is worth (2511.02230).

Sections, equations and rules are v6's, as two public re-implementations read them
(michiLXY03/vllm-continuum-plugin, burninglhw/vllm-continuum); the authors published only a fixed
2 s. Pinning a turn's KV for τ costs τ of its memory and saves, if the program is back by then,
reloading it and the queue that whoever lost its KV has to stand in again (eq. 2):

    τ* = argmax over {0} and observed durations of  P(return ≤ τ) · (T·η + PrefillReload) − τ

A program is an application. Where the source is silent, or an application's agents are no chain:

- A turn's follow-up is a request that the application declares to come after it, or the agent's
  own next one. Duration is what the paper's server sees: from the turn's end to the first of them.
- A turn that ends without a call while a declared successor continues its context counts as a
  call of a tool of its own. A turn that nothing declared continues is like a program's last: it
  is not pinned. Its KV stays in the tree as any other's.
- A pin at τ* = 0 lasts for the instant, and the follow-up may wait already: then it is pinned.
- The cold start is eq. 2 with the paper's Exp(1 s): τ = ln B for a benefit of B > 1 s, else 0.
  Later, ties take the smaller τ.
- PrefillReload is the smaller of computing and of loading the whole context: the paper's host tier
  is LMCache, here it is HiCache, which always copies.
- Evicted, for T, is who lost its pin or had none, or was retracted; the mean is over the last
  WINDOW of them. Pairs (k, N − k) are pooled for k = 1 … N − 1 of every program that ended; while
  they say nothing, η = 1, as at the cold start.
- Pins yield, the latest program's first, when nothing else can run or a running request would
  have to be retracted: the mechanism asks exactly then.
"""

import math
from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.rivals.time_to_live import (
    Memoryfulness,
    default_time_to_live_s,
    time_to_live_s,
)
from benchmarks.rivals.turns import Turn, Turns
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call
from tokencake_sglang.policy import Decision, Keep, Knowledge, LetGo, Policy, Request, View

ENOUGH_SAMPLES = 100
"""K: up to so many durations are too few (§4.2)."""

WINDOW = 256
"""Queueing delays that T is the mean of."""


@dataclass
class Continuum(Policy):
    """Pins for τ*; serves the preempted, then programs inside a TTL, then programs by arrival."""

    reopens_admission = True

    turns: Turns = field(default_factory=Turns, init=False)
    memoryfulness: Memoryfulness = field(default_factory=Memoryfulness, init=False)
    durations_s: dict[str, list[float]] = field(default_factory=dict, init=False)
    all_durations_s: list[float] = field(default_factory=list, init=False)
    delays_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW), init=False)
    _ended: list[Turn] = field(default_factory=list, init=False)
    _expires_s: dict[AgentKey, float] = field(default_factory=dict, init=False)
    _evicted_s: dict[str, float] = field(default_factory=dict, init=False)
    _turns_of: dict[str, int] = field(default_factory=dict, init=False)

    # -- told ---------------------------------------------------------------------------------

    def prepare(self, knowledge: Knowledge) -> None:
        super().prepare(knowledge)
        self.turns.workflow = knowledge.workflow

    def request_queued(self, request: Request, now_s: float) -> None:
        for turn in self.turns.request_queued(request, now_s):
            if len(turn.waiting) == 1 and not turn.followed:
                self._observe(turn.tool, now_s - turn.ended_s)
            if turn.decided and turn.key not in self._expires_s and not turn.followed:
                self._evicted_s[request.rid] = now_s

    def request_admitted(self, request: Request, now_s: float) -> None:
        since_s = self._evicted_s.pop(request.rid, None)
        if since_s is not None:
            self.delays_s.append(now_s - since_s)
        self.turns.request_admitted(request)

    def request_retracted(self, request: Request, now_s: float) -> None:
        self._evicted_s[request.rid] = now_s

    def request_finished(self, request: Request, now_s: float) -> None:
        self._turns_of[request.program] = self._turns_of.get(request.program, 0) + 1
        turn = self.turns.request_finished(request, now_s)
        if turn is not None:
            self._ended.append(turn)

    def call_started(self, agent: Agent, call: Call, now_s: float) -> None:
        turn = self.turns.call_started(agent, call)
        if turn is not None and turn.decided:
            self._ended.append(turn)  # the signal came late

    def agent_finished(self, key: AgentKey, now_s: float) -> None:
        self._expires_s.pop(key, None)
        if self.turns.agent_finished(key):
            self.memoryfulness.program_ended(self._turns_of.pop(key.application, 0))

    # -- asked --------------------------------------------------------------------------------

    def decide(self, view: View) -> Iterator[Decision]:
        yield from self._let_go(view)
        ended, self._ended = self._ended, []
        for turn in ended:
            if self.turns.by_agent.get(turn.key) is not turn:
                continue
            ttl_s = self.ttl_s(turn)
            turn.decided = True
            if ttl_s > 0.0 or turn.waiting:
                yield Keep(turn.key, f"ttl:{turn.tool or 'no call'}")
            if view.is_kept(turn.key):
                self._expires_s[turn.key] = turn.ended_s + ttl_s
            else:
                self._lost(turn)

    def _let_go(self, view: View) -> Iterator[Decision]:
        """Pins past their time end, unless the follow-up is there; others the mechanism ended."""
        for key, expires_s in list(self._expires_s.items()):
            turn = self.turns.by_agent.get(key)
            if view.is_kept(key):
                if turn is not None and (turn.waiting or view.now_s <= expires_s):
                    continue
                yield LetGo(key, "ttl over")
            del self._expires_s[key]
            if turn is not None:
                self._lost(turn)

    def _lost(self, turn: Turn) -> None:
        """Its KV may be evicted now; whoever waits for it has waited for that all along."""
        if not turn.followed:
            for request in turn.waiting.values():
                self._evicted_s.setdefault(request.rid, request.queued_s)

    def order(self, view: View) -> Sequence[int]:
        """§4.3: preempted, inside a TTL, then by the program's arrival."""
        inside = {key.application for key in self._expires_s}
        queue = view.queue

        def rank(place: int) -> tuple[bool, bool, float, float]:
            request = queue[place]
            preempted = request.retractions > 0
            return (
                not preempted,
                request.program not in inside,
                self.turns.arrival_s(request),
                request.queued_s,
            )

        return sorted(range(len(queue)), key=rank)

    def gives_up(self, kept: Sequence[AgentKey], view: View) -> AgentKey:
        """The pin of the program that arrived last, and its latest."""
        arrived_s = self.turns.arrived_s
        return max(reversed(kept), key=lambda key: arrived_s.get(key.application, math.inf))

    # -- the model ----------------------------------------------------------------------------

    def ttl_s(self, turn: Turn) -> float:
        """τ* of the turn that ended."""
        if not self.turns.is_continued(turn):
            return 0.0
        reload_s = self.machine.transfer_s(turn.tokens)
        if self.knowledge is not None:
            reload_s = min(reload_s, self.knowledge.prefill_s(turn.tokens, 0))
        if len(self.all_durations_s) <= ENOUGH_SAMPLES:
            return default_time_to_live_s(self.queueing_s + reload_s)
        samples = self.durations_s.get(turn.tool, ())
        if len(samples) <= ENOUGH_SAMPLES:
            samples = self.all_durations_s
        return time_to_live_s(samples, self.queueing_s * self.memoryfulness.eta + reload_s)

    @property
    def queueing_s(self) -> float:
        """T: what whoever lost its KV waited on average."""
        return sum(self.delays_s) / len(self.delays_s) if self.delays_s else 0.0

    def _observe(self, tool: str, duration_s: float) -> None:
        insort(self.durations_s.setdefault(tool, []), duration_s)
        insort(self.all_durations_s, duration_s)
