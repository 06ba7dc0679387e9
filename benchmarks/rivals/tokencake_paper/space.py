"""The space scheduler: hybrid priorities, critical agent types and their reservations."""

from collections.abc import Sequence

from benchmarks.rivals.tokencake_paper.formulas import (
    RESERVE_MIN,
    UPDATE_STEPS,
    dynamic_priority,
    reservations,
    reserve_ratio,
    static_priority,
)
from tokencake_sglang.agents.workflow import Workflow
from tokencake_sglang.policy import Machine, Request, View

UNTAGGED = ""


def agent_type(request: Request) -> str:
    return UNTAGGED if request.agent is None else request.agent.agent_type


class Space:
    """A type's score is the mean of its requests', its usage an average over updates."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.ratio = RESERVE_MIN
        self.reserved: dict[str, float] = {}
        self._static: dict[str, float] = {}
        self._used_tokens: dict[str, float] = {}
        self._unused_tokens = 0
        self._step = 0

    def prepare(self, workflow: Workflow) -> None:
        for rid in workflow.steps:
            depth = workflow.depth[rid] + 1
            self._static[rid] = static_priority(depth, len(workflow.successors[rid]))

    def begin_step(self, view: View) -> None:
        if self._step % UPDATE_STEPS == 0:
            self._update(view)
        self._step += 1
        unused = dict(self.reserved)
        for request in view.running:
            if (kind := agent_type(request)) in unused:
                unused[kind] = max(0.0, unused[kind] - request.tokens)
        self._unused_tokens = int(sum(unused.values()))

    def _update(self, view: View) -> None:
        """Algorithm 2. What is evictable counts as free."""
        now: dict[str, float] = {}
        for request in view.running:
            now[agent_type(request)] = now.get(agent_type(request), 0.0) + request.tokens
        for kind in {*self._used_tokens, *now}:
            used = now.get(kind, 0.0)
            self._used_tokens[kind] = (self._used_tokens.get(kind, used) + used) / 2
        pool = self.machine.pool_tokens
        usage = 1 - (view.free_tokens + view.evictable_tokens) / pool
        self.ratio = reserve_ratio(self.ratio, usage)
        by_kind: dict[str, list[float]] = {}
        for request in (*view.queue, *view.running):
            by_kind.setdefault(agent_type(request), []).append(self.score(request, view.now_s))
        scores = {kind: sum(each) / len(each) for kind, each in by_kind.items()}
        self.reserved = reservations(scores, self._used_tokens, pool, self.ratio)

    def score(self, request: Request, now_s: float) -> float:
        """The hybrid: the graph's part and the running one."""
        wait_s = now_s - request.queued_s
        return self._static.get(request.rid, 0.0) + dynamic_priority(wait_s, request.tokens)

    def order(self, view: View) -> Sequence[int]:
        scores = [self.score(request, view.now_s) for request in view.queue]
        return sorted(range(len(scores)), key=lambda place: -scores[place])

    def withheld_tokens(self, request: Request) -> int:
        """What critical types have reserved and do not use; nothing for a critical request."""
        return 0 if agent_type(request) in self.reserved else self._unused_tokens
