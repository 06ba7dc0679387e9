"""An oracle: told every tool's true duration, every output's length and what each prompt reuses.

Eviction is Belady's on both tiers (farthest next use first; KV that nobody will use before all
else). Uploads end exactly when the tool does. It is a bound and not a plan: no order of a queue
is known to be optimal, so there are several, and the bound of a metric is the best of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.workflow import Step
from tokencake_sglang.policy import (
    NEVER_S,
    Decision,
    EvictionCandidate,
    Knowledge,
    Policy,
    Request,
    Upload,
    View,
)

MARGIN_S = 0.05
"""Uploads are due this long before the return: about a scheduler step."""


@dataclass
class ServerOrder(Policy):
    """Perfect eviction and upload; the queue as the server's own schedule policy orders it."""

    orders_eviction = True
    reopens_admission = True

    finished_s: dict[str, float] = field(default_factory=dict)
    queued: dict[str, Request] = field(default_factory=dict)
    running: dict[str, Request] = field(default_factory=dict)
    last_step: dict[AgentKey, str] = field(default_factory=dict)
    """The step whose path an agent has in the tree."""
    now_s: float = 0.0
    _next_use_s: dict[str, float] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)
    """Step → when it will be sent, for steps whose predecessors have all ended."""
    _place: dict[str, int] = field(default_factory=dict)

    def prepare(self, knowledge: Knowledge) -> None:
        super().prepare(knowledge)
        self.steps = knowledge.workflow.steps
        self.successors = knowledge.workflow.successors
        self.token_s = knowledge.decode_s(8, 8 * 10_000)

    # -- told ---------------------------------------------------------------------------------

    def request_queued(self, request: Request, now_s: float) -> None:
        self.queued[request.rid] = request
        self._due.pop(request.rid, None)
        self._changed(now_s)

    def request_admitted(self, request: Request, now_s: float) -> None:
        self.running[request.rid] = request
        self.queued.pop(request.rid, None)
        self._changed(now_s)

    def request_retracted(self, request: Request, now_s: float) -> None:
        self.running.pop(request.rid, None)
        self.request_queued(request, now_s)

    def request_finished(self, request: Request, now_s: float) -> None:
        self.running.pop(request.rid, None)
        self.finished_s[request.rid] = now_s
        if request.key is not None:
            self.last_step[request.key] = request.rid
        for rid in self.successors.get(request.rid, ()):
            step = self.steps[rid]
            if all(before in self.finished_s for before in step.wait_for):
                self._due[rid] = self._sent_s(step)
        self._changed(now_s)

    def _changed(self, now_s: float) -> None:
        self.now_s = now_s
        self._next_use_s.clear()

    # -- when a step will read its prefix -----------------------------------------------------

    def _sent_s(self, step: Step) -> float:
        return step.pause_s + max(
            (self.finished_s[before] + self.steps[before].tool_s for before in step.wait_for),
            default=0.0,
        )

    def next_use_s(self, rid: str) -> float:
        """When the step will be admitted at the earliest; queued steps by their place."""
        found = self._next_use_s.get(rid)
        if found is None:
            found = self._next_use_s[rid] = self._find_next_use_s(rid)
        return found

    def _find_next_use_s(self, rid: str) -> float:
        if rid in self.queued:
            return self.now_s + 1e-3 * self._place.get(rid, len(self._place))
        if rid in self.running or rid in self.finished_s:
            return NEVER_S
        if rid in self._due:
            return max(self._due[rid], self.now_s)
        step = self.steps[rid]
        latest_s = 0.0
        for before in step.wait_for:
            if before in self.finished_s:
                end_s = self.finished_s[before]
            elif (request := self.running.get(before)) is not None:
                left = request.prompt_tokens + self.steps[before].output_tokens - request.tokens
                end_s = self.now_s + left * self.token_s
            else:
                end_s = self.next_use_s(before) + self.steps[before].output_tokens * self.token_s
            latest_s = max(latest_s, end_s + self.steps[before].tool_s)
        return max(latest_s + step.pause_s, self.now_s)

    def eviction_rank(self, node: EvictionCandidate) -> tuple[float, ...]:
        next_s = NEVER_S
        for key in node.agents:
            rid = self.last_step.get(key)
            for after in self.successors.get(rid, ()) if rid is not None else ():
                if (self.steps[after].reuses or {}).get(rid, 0) > node.depth_tokens:
                    next_s = min(next_s, self.next_use_s(after))
        return (-next_s, node.last_access)

    # -- asked --------------------------------------------------------------------------------

    def decide(self, view: View) -> Iterable[Decision]:
        self.now_s = view.now_s
        self._place = {request.rid: place for place, request in enumerate(view.queue)}
        if view.left_waiting:
            return ()
        return self._uploads(view)

    def _uploads(self, view: View) -> Iterator[Decision]:
        for rid in sorted(self._due, key=self._due.__getitem__):
            step = self.steps[rid]
            key = self._source_of(step)
            if key is None or view.is_kept(key):
                continue
            away_s = self._due[rid] - view.now_s
            # Nothing larger than the prompt has to be moved.
            if away_s > self.machine.transfer_s(step.prompt_tokens) + MARGIN_S:
                continue
            host_tokens = view.cached(key).host_only_tokens
            if host_tokens and away_s <= self.machine.transfer_s(host_tokens) + MARGIN_S:
                yield Upload(key, "returns")

    def _source_of(self, step: Step) -> AgentKey | None:
        """The agent whose path the step's prompt begins with, if it reuses any."""
        best = max(step.wait_for, key=(step.reuses or {}).__getitem__, default=None)
        if best is None or not (step.reuses or {})[best]:
            return None
        return self.steps[best].key


@dataclass
class ByAge(ServerOrder):
    """Applications in order of arrival, the longest remaining path first within one."""

    def order(self, view: View) -> Sequence[int] | None:
        return sorted(range(len(view.queue)), key=lambda place: self.rank(view.queue[place]))

    def rank(self, request: Request) -> tuple[float, ...]:
        agent = request.agent
        age = agent.application_order if agent is not None else float("inf")
        return (age, -self.path_s(request.rid), request.queued_s)

    def path_s(self, rid: str) -> float:
        """Seconds of decoding and tools that follow a step's start on the longest way."""
        if not hasattr(self, "_path_s"):
            self._path_s: dict[str, float] = {}
            for step in reversed(self.steps.values()):  # declared after their predecessors
                after = max(
                    (self._path_s.get(r, 0.0) for r in self.successors[step.rid]), default=0.0
                )
                self._path_s[step.rid] = step.output_tokens * self.token_s + step.tool_s + after
        return self._path_s.get(rid, 0.0)


@dataclass
class Backfilling(ByAge):
    """The same, but a request that does not fit is passed over and those behind it are tried.

    The pool holds about five prompts of the DAGs, so that much stays free behind such a head; but
    what fits there may be another application, which shares nothing with those that run.
    """

    backfills = True


@dataclass
class Shortest(ByAge):
    """The application with the least work left first: preemptive shortest remaining time."""

    backfills = True

    def prepare(self, knowledge: Knowledge) -> None:
        super().prepare(knowledge)
        self.left_s = {
            name: sum(self._work_s(step) for step in steps)
            for name, steps in knowledge.workflow.by_application.items()
        }

    def _work_s(self, step: Step) -> float:
        assert self.knowledge is not None
        reused = max((step.reuses or {}).values(), default=0)
        new_tokens = max(step.prompt_tokens - reused, 1)
        return self.knowledge.prefill_s(new_tokens, reused) + step.output_tokens * self.token_s / 8

    def request_finished(self, request: Request, now_s: float) -> None:
        super().request_finished(request, now_s)
        step = self.steps[request.rid]
        self.left_s[step.application] -= self._work_s(step)

    def rank(self, request: Request) -> tuple[float, ...]:
        left_s = self.left_s.get(request.program, 0.0)
        return (left_s, -self.path_s(request.rid), request.queued_s)
