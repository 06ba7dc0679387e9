"""What ThunderAgent and MORI know of whole programs: how large they are and what they are doing.

Both papers' programs are single threads that alternate between reasoning and acting. Here a
program is an application and may have several branches: it reasons while any of its requests is
queued or runs. Its size ``c`` is that of its open contexts together. The authors' router takes a
program's last context; of several, the longest counts in full and the others with what they do
not begin with in common with an earlier turn. Requests of no application are no programs: they
pass freely, and what they hold is taken off the capacity.
"""

from collections import deque
from dataclasses import dataclass, field

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.workflow import Workflow
from tokencake_sglang.policy import Policy, Request, View

CYCLES = 5
"""Cycles of reasoning and acting that idleness looks back on (MORI: k = 5)."""


@dataclass(slots=True)
class Context:
    """One conversation of a program. ``own_tokens`` are not shared with an earlier turn's."""

    tokens: int
    own_tokens: int


@dataclass(slots=True, eq=False)
class Program:
    """One application. ``cycles`` are seconds of reasoning and acting, the newest last."""

    name: str
    order: int
    queued: dict[str, Request] = field(default_factory=dict)
    running: dict[str, Request] = field(default_factory=dict)
    contexts: dict[AgentKey, Context] = field(default_factory=dict)
    agents: set[AgentKey] = field(default_factory=set)
    turns: int = 0
    since_s: float = 0.0
    cycles: deque[list[float]] = field(default_factory=lambda: deque(maxlen=CYCLES))

    @property
    def reasoning(self) -> bool:
        return bool(self.queued or self.running)

    @property
    def tokens(self) -> int:
        """c, the size of its working set."""
        self._grow()
        return _together(list(self.contexts.values()))

    @property
    def running_tokens(self) -> int:
        """The part of c that its running requests hold."""
        self._grow()
        owners = {request.key for request in self.running.values()}
        return _together([c for owner, c in self.contexts.items() if owner in owners])

    def _grow(self) -> None:
        for request in self.running.values():
            assert request.key is not None
            context = self.contexts.setdefault(request.key, Context(0, 0))
            grown = request.tokens - context.tokens
            context.tokens += grown
            context.own_tokens += grown

    def idleness(self, now_s: float) -> float:
        """MORI's ι = T_acting / (T_reasoning + T_acting) over the last cycles, 0 for a newcomer.

        The call under way counts as far as it has gone; waiting for the scheduler does not count.
        """
        reasoning_s = sum(cycle[0] for cycle in self.cycles)
        acting_s = sum(cycle[1] for cycle in self.cycles)
        if self.running:
            reasoning_s += now_s - self.since_s
        elif not self.queued:
            acting_s += now_s - self.since_s
        total_s = reasoning_s + acting_s
        return acting_s / total_s if total_s > 0 else 0.0

    def acting_s(self, now_s: float) -> float:
        return 0.0 if self.reasoning else now_s - self.since_s

    def _closes_interval(self, now_s: float) -> None:
        """To be called before anything changes what the program is doing."""
        if self.cycles:
            if self.running:
                self.cycles[-1][0] += now_s - self.since_s
            elif not self.queued:
                self.cycles[-1][1] += now_s - self.since_s
        self.since_s = now_s


class Programs:
    """All programs; to be told what happens to tagged requests before their policy acts on it."""

    def __init__(self) -> None:
        self.workflow: Workflow | None = None
        self.by_name: dict[str, Program] = {}

    def of(self, request: Request) -> Program:
        program = self.by_name.get(request.program)
        if program is None:
            program = self.by_name[request.program] = Program(request.program, len(self.by_name))
        return program

    def request_queued(self, request: Request, now_s: float) -> Program:
        program = self.of(request)
        program._closes_interval(now_s)
        program.queued[request.rid] = request
        assert request.key is not None
        program.agents.add(request.key)
        shared = self._continues(program, request)
        if (old := program.contexts.get(request.key)) is not None:
            shared = max(shared, min(old.tokens, request.prompt_tokens))
        program.contexts[request.key] = Context(request.tokens, request.tokens - shared)
        return program

    def _continues(self, program: Program, request: Request) -> int:
        """Tokens in common with earlier turns; those that the prompt contains are not open."""
        step = None if self.workflow is None else self.workflow.steps.get(request.rid)
        shared = 0
        for rid, tokens in ((step.reuses or {}) if step is not None else {}).items():
            shared = max(shared, tokens)
            key = self.workflow.steps[rid].key
            context = program.contexts.get(key) if key is not None else None
            if context is not None and tokens >= context.tokens:
                del program.contexts[key]
        return shared

    def request_admitted(self, request: Request, now_s: float) -> Program:
        program = self.of(request)
        program._closes_interval(now_s)
        if not program.running and (not program.cycles or program.cycles[-1][1] > 0.0):
            program.cycles.append([0.0, 0.0])
        program.queued.pop(request.rid, None)
        program.running[request.rid] = request
        return program

    def request_retracted(self, request: Request, now_s: float) -> None:
        if request.agent is not None:
            program = self.of(request)
            program._closes_interval(now_s)
            program.running.pop(request.rid, None)
            program.queued[request.rid] = request

    def request_finished(self, request: Request, now_s: float) -> Program:
        program = self.of(request)
        program._grow()
        program._closes_interval(now_s)
        program.running.pop(request.rid, None)
        program.queued.pop(request.rid, None)
        program.turns += 1
        return program

    def agent_finished(self, key: AgentKey) -> Program | None:
        """Returns the program if this was its last agent: then it is known no more."""
        program = self.by_name.get(key.application)
        if program is None:
            return None
        program.agents.discard(key)
        program.contexts.pop(key, None)
        return None if program.agents else self.by_name.pop(key.application)


def untagged_tokens(view: View) -> int:
    """What running requests of no application hold."""
    return sum(request.tokens for request in view.running if request.agent is None)


def admitted_first(policy: Policy, view: View) -> list[int]:
    """Places in the queue: those that the policy admits, then the others, both as they stand."""
    queue = view.queue
    admitted = [policy.admits(request, view) for request in queue]
    return sorted(range(len(queue)), key=lambda place: not admitted[place])


def _together(contexts: list[Context]) -> int:
    if not contexts:
        return 0
    longest = max(contexts, key=lambda context: context.tokens)
    return longest.tokens + sum(c.own_tokens for c in contexts if c is not longest)
