"""Admission over time (``SchedulingController``)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from benchmarks.rivals.tokencake_repo.admission import Capacity, Charge, Waiting, admitted, ordered
from benchmarks.rivals.tokencake_repo.agent_types import AgentTypes, agent_type
from benchmarks.rivals.tokencake_repo.graph import Metadata
from benchmarks.rivals.tokencake_repo.score import (
    Partition,
    next_reserve_ratio,
    partition,
    request_score,
)
from tokencake_sglang.policy import Machine, Request, View

PARTITION_STEPS = 500
REPLAN_STEPS = 8
CRITICAL_RATIO = 0.75
SCARCE_ABOVE_USAGE = 0.75


def full_tokens(request: Request) -> int:
    """``admission_tokens``: its input, and all it may generate."""
    return max(request.tokens, request.prompt_tokens + request.output_limit)


class Scheduling:
    """``declared`` gives a request's metadata.

    ``looks_at_all``: in this pass all of the queue is to be looked at, admitted or not.
    """

    def __init__(self, machine: Machine, declared: Callable[[str], Metadata]) -> None:
        self.machine = machine
        self.declared = declared
        self.types = AgentTypes(declared)
        self.step = 0
        self.reserve_ratio = 0.05
        self.plan = Partition()
        self.uncommitted = machine.pool_tokens
        self.looks_at_all = False
        self._charges: dict[str, list[Charge]] = {}
        self._started_s: dict[str, float] = {}  # applications
        self._retry: dict[str, tuple[int, int]] = {}
        self._completions = 0
        self._planned: tuple | None = None
        self._granted: dict[str, list[Charge]] = {}
        self._places: dict[str, int] = {}
        self._deferred: Counter[str] = Counter()

    # -- told ---------------------------------------------------------------------------------

    def queued(self, request: Request, now_s: float) -> None:
        self._started_s.setdefault(request.program, now_s)

    def was_admitted(self, request: Request, now_s: float) -> None:
        whole = [(None, full_tokens(request))]
        self._charges[request.rid] = self._granted.get(request.rid) or whole
        self._retry.pop(request.rid, None)
        self.types.admitted(request, request.queued_s - self._started_s[request.program], now_s)

    def retracted(self, request: Request) -> None:
        self._charges.pop(request.rid, None)
        self._retry[request.rid] = self.uncommitted, self._completions
        self.types.preempted(request)

    def finished(self, request: Request, now_s: float) -> None:
        self._completions += self._charges.pop(request.rid, None) is not None
        self._retry.pop(request.rid, None)
        self.types.finished(request, now_s)

    # -- each step ----------------------------------------------------------------------------

    def begin_step(self, view: View) -> None:
        """``begin_step``: what is uncommitted, and every 500 steps the partition."""
        self.step += 1
        growth = sum(full_tokens(r) - r.tokens for r in view.running)
        self.uncommitted = view.free_tokens + view.evictable_tokens - growth
        if not self.plan.scores or self.step % PARTITION_STEPS == 0:
            self._partition(view)

    def _partition(self, view: View) -> None:
        scores, importance = self.types.scores(view)
        if not scores:
            return
        used: Counter[str] = Counter()
        for request in view.running:
            used[agent_type(request)] += request.tokens
        pool = self.machine.pool_tokens
        usage = 1 - (view.free_tokens + view.evictable_tokens) / pool
        self.reserve_ratio = next_reserve_ratio(self.reserve_ratio, usage)
        self.plan = partition(scores, importance, used, pool, self.reserve_ratio, CRITICAL_RATIO)

    # -- admission ----------------------------------------------------------------------------

    def order(self, view: View) -> Sequence[int]:
        """Who is to be admitted comes first. Planned anew when somebody came or left, or every
        8 steps, for scores grow with time; then the whole queue is looked at, to learn what of
        it is cached, and planned once more."""
        state = (
            self.step // REPLAN_STEPS,
            tuple(request.rid for request in view.running),
            frozenset(request.rid for request in view.queue),
        )
        if state != self._planned or self.looks_at_all:
            self.looks_at_all = state != self._planned
            self._planned = state
            self._plan(view)
        self.types.deferred(self._deferred)
        last = len(self._places)
        return sorted(
            range(len(view.queue)), key=lambda i: self._places.get(view.queue[i].rid, last)
        )

    def _plan(self, view: View) -> None:
        waiting = self._waiting(view)
        scarce = self.uncommitted <= self.machine.pool_tokens * (1 - SCARCE_ABOVE_USAGE)
        in_order = ordered(waiting, scarce=scarce)
        best: dict[str, int] = {}
        for entry in waiting:
            if entry.agent_type in self.plan.critical:
                best[entry.agent_type] = max(best.get(entry.agent_type, entry.score), entry.score)
        used: Counter[str | None] = Counter()
        for request in view.running:
            for owner, tokens in self._charges.get(request.rid, ()):
                used[owner] += tokens
        capacity = Capacity.of(
            self.uncommitted,
            self.plan.shared,
            self.plan.reserved,
            used,
            self.plan.scores,
            best,
        )
        self._granted = admitted([w for w in in_order if self._may_retry(w.rid, view)], capacity)
        refused = [entry for entry in in_order if entry.rid not in self._granted]
        self._deferred = Counter(entry.agent_type for entry in refused)
        turn = [*self._granted, *(entry.rid for entry in refused)]
        self._places = {rid: place for place, rid in enumerate(turn)}

    def _may_retry(self, rid: str, view: View) -> bool:
        """A preempted request waits until somebody ended, or there is more room than then."""
        retry = self._retry.get(rid)
        if retry is None or not view.running:
            return True
        return retry[1] != self._completions or self.uncommitted > retry[0]

    def _waiting(self, view: View) -> list[Waiting]:
        own = self._scores(view)
        best: dict[str, int] = {}
        for rid, score in own.items():
            if group := self.declared(rid).join_group:
                best[group] = max(best.get(group, score), score)
        active = {request.program for request in view.running}
        return [
            Waiting(
                rid=request.rid,
                agent_type=agent_type(request),
                score=best.get(self.declared(request.rid).join_group, own[request.rid]),
                own_score=own[request.rid],
                queued_s=request.queued_s,
                full_tokens=full_tokens(request),
                held_tokens=request.cached_tokens if request.program in active else 0,
            )
            for request in view.queue
        ]

    def _scores(self, view: View) -> dict[str, int]:
        first_s = min(self._started_s.values(), default=0.0)
        scores = {}
        for request in (*view.queue, *view.running):
            started_s = self._started_s[request.program]
            scores[request.rid] = request_score(
                self.declared(request.rid),
                start_offset_s=started_s - first_s,
                elapsed_s=view.now_s - started_s,
                wait_s=view.now_s - request.queued_s,
            )
        return scores

    def admits(self, request: Request) -> bool:
        return request.rid in self._granted

    def type_scores(self) -> Mapping[str, float]:
        return self.plan.scores
