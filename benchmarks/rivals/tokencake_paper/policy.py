"""The policy: both schedulers of the paper on this engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.rivals.tokencake_paper.formulas import (
    RESERVATION_STEPS,
    THROUGHPUT_PROBE_TOKENS,
    UNPROFILED_TOKENS_PER_S,
    UPLOAD_BUFFER_S,
    CallTimes,
    fitting,
)
from benchmarks.rivals.tokencake_paper.space import Space
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call
from tokencake_sglang.policy import (
    Decision,
    Insure,
    Keep,
    Knowledge,
    LetGo,
    Machine,
    Policy,
    Release,
    Request,
    Upload,
    View,
)


@dataclass(slots=True)
class Stall:
    """An agent in a tool call. ``leaving``: the gate said yes; ``left``: slots were given up.

    ``is_back``: brought back before the call ended. ``own_tokens`` are those of its context that nobody else shares, when first seen.
    """

    end_s: float
    own_tokens: int = 0
    leaving: bool = False
    left: bool = False
    is_back: bool = False


@dataclass(slots=True)
class Return:
    """A context that is to come back, after as many steps of gradual reservation."""

    steps: int = 0


class Paper(Policy):
    """TokenCake v2."""

    automatic_backup = False
    reopens_admission = True
    keeps_what_stays = True

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.times = CallTimes()
        self.tokens_per_s = UNPROFILED_TOKENS_PER_S
        self.stalls: dict[AgentKey, Stall] = {}
        self.returns: dict[AgentKey, Return] = {}
        self.space = Space(machine)
        self._promised_tokens = 0
        self._first: AgentKey | None = None
        self._settled: list[AgentKey] = []

    def prepare(self, knowledge: Knowledge) -> None:
        """The static scan of the graphs: cold-start times by tool, and static priorities."""
        super().prepare(knowledge)
        self.space.prepare(knowledge.workflow)
        declared: dict[str, list[float]] = {}
        for step in knowledge.workflow.steps.values():
            if step.tool is not None and step.declared_tool_s is not None:
                declared.setdefault(step.tool, []).append(step.declared_tool_s)
        for tool, seconds in declared.items():
            self.times.cold_start_s[tool] = sum(seconds) / len(seconds)
        probe_s = knowledge.prefill_s(THROUGHPUT_PROBE_TOKENS, 0)
        self.tokens_per_s = THROUGHPUT_PROBE_TOKENS / probe_s

    # -- told ---------------------------------------------------------------------------------

    def call_started(self, agent: Agent, call: Call, now_s: float) -> None:
        end_s = now_s + self.times.predict_s(call.tool, call.predicted_s)
        self.stalls[agent.key] = Stall(end_s)

    def call_finished(self, agent: Agent, call: Call, now_s: float) -> None:
        """A context that is still away comes back at once, without reservation."""
        self.times.learn(call.tool, now_s - call.started_s)
        stall = self.stalls.pop(agent.key, None)
        if stall is None:
            return
        if stall.left:
            self.returns[agent.key] = Return(RESERVATION_STEPS)
        elif not stall.is_back:
            self._settled.append(agent.key)

    def request_admitted(self, request: Request, now_s: float) -> None:
        """What the step was waiting for has been used."""
        for key in self._uses(request):
            self._settled.append(key)
            self.returns.pop(key, None)

    def agent_finished(self, key: AgentKey, now_s: float) -> None:
        self.stalls.pop(key, None)
        self.returns.pop(key, None)

    # -- the time scheduler -------------------------------------------------------------------

    def decide(self, view: View) -> Iterator[Decision]:
        self.space.begin_step(view)
        for key in self._settled:
            yield LetGo(key, "used")
        self._settled.clear()
        yield from self._bring_back(view)
        yield from self._offload(view)

    def _bring_back(self, view: View) -> Iterator[Decision]:
        for key, stall in self.stalls.items():
            if stall.left and key not in self.returns and self._is_soon(key, stall, view):
                self.returns[key] = Return()
        self._promised_tokens, self._first = 0, None
        for key, coming in list(self.returns.items()):
            away = view.cached(key).host_only_tokens
            if away == 0:
                del self.returns[key]
                if key in self.stalls:
                    self.stalls[key] = Stall(self.stalls[key].end_s, is_back=True)
                continue
            coming.steps = min(coming.steps + 1, RESERVATION_STEPS + 1)
            if self._first is None:  # one comes back at a time
                reserved = min(coming.steps, RESERVATION_STEPS)
                self._first = key
                self._promised_tokens = away * reserved // RESERVATION_STEPS
                if coming.steps > RESERVATION_STEPS:
                    yield Upload(key, "predicted" if key in self.stalls else "returned")

    def _is_soon(self, key: AgentKey, stall: Stall, view: View) -> bool:
        upload_s = self.machine.transfer_s(view.cached(key).host_only_tokens)
        return stall.end_s - view.now_s <= upload_s + UPLOAD_BUFFER_S

    def _offload(self, view: View) -> Iterator[Decision]:
        waiting = [request.tokens for request in view.queue]
        for key, stall in self.stalls.items():
            if key in self.returns:
                continue
            if stall.leaving:
                cached = view.cached(key)
                if cached.releasable_tokens:
                    stall.left = True
                    yield Release(key, "copied")
                elif not stall.left and cached.uncopied_tokens:
                    yield Insure(key, "gate")  # was put off
                continue
            if stall.own_tokens == 0:
                stall.own_tokens = view.cached(key).exclusive_tokens
            if stall.own_tokens == 0:
                continue
            transfer_s = 2 * self.machine.transfer_s(stall.own_tokens)
            best = fitting(stall.end_s - view.now_s, transfer_s, self.tokens_per_s, waiting)
            if best is not None:
                waiting.remove(best)
                stall.leaving = True
                yield LetGo(key, "gate")
                yield Insure(key, "gate")
            elif self.keeps_what_stays and not view.is_kept(key):
                yield Keep(key, "gate")

    # -- asked at admission -------------------------------------------------------------------

    def order(self, view: View) -> Sequence[int]:
        """By priority; before that, those whose context is pinned for them, which frees it."""
        places = self.space.order(view)
        if not self.knowledge:
            return places
        return sorted(places, key=lambda place: not self._is_ready(view.queue[place], view))

    def _is_ready(self, request: Request, view: View) -> bool:
        return any(view.is_kept(key) for key in self._uses(request))

    def withheld_tokens(self, request: Request, view: View) -> int:
        """What is reserved for others, and for a context that is coming back. Nothing for who
        has its context pinned; the promised slots are for whoever goes on from that context."""
        if self._is_ready(request, view):
            return 0
        promised = 0 if self._first in self._uses(request) else self._promised_tokens
        return promised + self.space.withheld_tokens(request)

    def _uses(self, request: Request) -> list[AgentKey]:
        """Whose contexts the request goes on from: its own agent's, and those it waited for."""
        steps = self.knowledge.workflow.steps if self.knowledge else {}
        step = steps.get(request.rid)
        before = [steps[rid].key for rid in (step.wait_for if step else ())]
        return [key for key in (request.key, *before) if key is not None]
