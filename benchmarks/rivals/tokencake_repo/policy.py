"""The two halves, each alone and both."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.rivals.tokencake_repo.agent_types import agent_type
from benchmarks.rivals.tokencake_repo.gate import BLOCK_TOKENS, WINDOW_BLOCKS, Pressure
from benchmarks.rivals.tokencake_repo.graph import UNDECLARED, Metadata, declared
from benchmarks.rivals.tokencake_repo.preservation import Preservation
from benchmarks.rivals.tokencake_repo.scheduling import Scheduling, full_tokens
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call
from tokencake_sglang.policy import Decision, Knowledge, Policy, Request, View

STEP_TOKENS = 8192
"""What one step computes at most (``max_num_scheduled_tokens``)."""


@dataclass
class _Released(Policy):
    automatic_backup = False
    reopens_admission = True
    preserves = True
    schedules = True

    metadata: dict[str, Metadata] = field(default_factory=dict, init=False)
    of_agent: dict[AgentKey, Metadata] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.preservation = Preservation(self.machine) if self.preserves else None
        self.scheduling = Scheduling(self.machine, self.declared) if self.schedules else None

    def prepare(self, knowledge: Knowledge) -> None:
        super().prepare(knowledge)
        self.metadata = declared(knowledge.workflow)

    def declared(self, rid: str) -> Metadata:
        return self.metadata.get(rid, UNDECLARED)

    # -- told ---------------------------------------------------------------------------------

    def request_queued(self, request: Request, now_s: float) -> None:
        if request.key is not None:
            self.of_agent[request.key] = self.declared(request.rid)
        if self.scheduling:
            self.scheduling.queued(request, now_s)

    def request_admitted(self, request: Request, now_s: float) -> None:
        if self.scheduling:
            self.scheduling.was_admitted(request, now_s)

    def request_retracted(self, request: Request, now_s: float) -> None:
        if self.scheduling:
            self.scheduling.retracted(request)

    def request_finished(self, request: Request, now_s: float) -> None:
        if self.scheduling:
            self.scheduling.finished(request, now_s)

    def call_started(self, agent: Agent, call: Call, now_s: float) -> None:
        if self.preservation:
            self.preservation.call_started(agent, call, now_s)

    def call_finished(self, agent: Agent, call: Call, now_s: float) -> None:
        if self.preservation:
            self.preservation.call_finished(agent, call, now_s)

    def agent_finished(self, key: AgentKey, now_s: float) -> None:
        self.of_agent.pop(key, None)
        if self.preservation:
            self.preservation.forget(key)

    # -- asked --------------------------------------------------------------------------------

    def decide(self, view: View) -> Iterable[Decision]:
        if self.scheduling:
            self.scheduling.begin_step(view)
        if self.preservation is None:
            return ()
        self.preservation.new_step()
        if not self.preservation.is_pending:
            return ()
        scores = dict(self.scheduling.type_scores()) if self.scheduling else {}
        return self.preservation.decide(view, self.pressure(view), self.of_agent, scores)

    def order(self, view: View) -> Sequence[int] | None:
        return self.scheduling.order(view) if self.scheduling else None

    def admits(self, request: Request, view: View) -> bool:
        return self.scheduling.admits(request) if self.scheduling else True

    @property
    def refusal_ends_pass(self) -> bool:
        return self.scheduling is not None and not self.scheduling.looks_at_all

    # -- what the gate sees -------------------------------------------------------------------

    def pressure(self, view: View) -> Pressure:
        """``waiting_pressure``, with ``first_fit``. Without the scheduling half a request fits
        when its prompt does; with it, when all it may generate does as well."""
        free = view.free_tokens + view.evictable_tokens
        uncommitted = self.scheduling.uncommitted if self.scheduling else free
        plan = self.scheduling.plan if self.scheduling else None
        room, left, budget = free, uncommitted, STEP_TOKENS
        demand_tokens = critical_tokens = fit_tokens = 0
        for request in view.queue:
            demand_tokens += request.tokens
            if plan is not None and agent_type(request) in plan.critical:
                critical_tokens += request.tokens
            missing = max(1, request.tokens - request.cached_tokens)
            whole = full_tokens(request) if self.scheduling else request.tokens
            whole -= request.cached_tokens
            step = min(missing, STEP_TOKENS)
            if step > room or step > budget or whole > left:
                continue
            room, left, budget = room - step, left - whole, budget - step
            fit_tokens += step
        return Pressure(
            usage=1 - free / self.machine.pool_tokens,
            free=free // BLOCK_TOKENS,
            waiting=len(view.queue),
            waiting_demand=-(-demand_tokens // BLOCK_TOKENS),
            critical_demand=-(-critical_tokens // BLOCK_TOKENS),
            shared_available=(free if plan is None else min(free, plan.shared)) // BLOCK_TOKENS,
            fit_demand=min(WINDOW_BLOCKS, -(-fit_tokens // BLOCK_TOKENS)),
        )


class Both(_Released):
    """Preservation and scheduling, as the authors run it."""


class OffloadOnly(_Released):
    """Preservation alone: SGLang's own queue and admission."""

    schedules = False


class SchedulingOnly(_Released):
    """Scheduling alone: nothing is ever copied to the host."""

    preserves = False
