"""KVFlow: evict the farthest step of the workflow first, load the next steps ahead of time.

Sources: Pan et al., "KVFlow" (NeurIPS'25, arXiv 2507.07400), and the constants of the authors' code
(``PanZaifeng/KVFlow``, an SGLang fork: ``load_ahead_step = 2``).

- Steps to execution: 0 for a request that is queued or runs; else one more than the largest of the
  steps it waits for (AND; declared graphs have no OR), a settled one counting 0. A node of the tree has the smallest number of
  the steps that will read it. The largest goes first, what no step will read before all else; the
  tree gives up leaves first, so varying suffixes go before fixed prompts.
- Prefixes of steps at most ``LOAD_AHEAD_STEPS`` away are loaded in the background, nearest first;
  the engine loads piece by piece, so a nearer one interrupts.
- Status-aware scheduling: a request whose prefix is being loaded is passed over.

Not in the sources, and chosen here:

- The graph is that of single requests. KVFlow protects an agent's fixed prompt; the next prompts
  of these workloads begin with whole conversations, so whatever a later step reuses is protected.
- An agent outside the declared graph is assumed to go on: its path is at step 1.
- Equally distant nodes go least recently used first.
- A load makes room among nodes farther than its own step only, as in the authors' code. The
  mechanism cannot be told so; instead a load must fit into what is free or evictable beside the
  prefixes that queued requests have on the device, and waits while requests, which are at step 0,
  wait for memory: without that it took the room from them and made whole runs slower.
- A loaded prefix is not pinned: from then on its step protects it. The authors' code holds nodes
  in the order of eviction too, and no harder.
- Neither source speaks of the queue's order: it stays the server's own. With longest prefix match
  what is protected is also used next; first come, first served uses it last.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.workflow import Step
from tokencake_sglang.policy import (
    NEVER_S,
    Decision,
    EvictionCandidate,
    Knowledge,
    LetGo,
    Policy,
    Request,
    Upload,
    View,
)

LOAD_AHEAD_STEPS = 2
CHECK_EVERY_S = 0.02
"""How often prefixes are looked for that could be loaded: about once a step of the engine."""

NEVER = NEVER_S
"""Steps to an execution that will not come."""


@dataclass
class KVFlow(Policy):
    """Steps to execution decide eviction and prefetch."""

    orders_eviction = True
    reopens_admission = True

    finished: set[str] = field(default_factory=set)
    in_server: set[str] = field(default_factory=set)
    """Requests that are queued or run."""
    last_step: dict[AgentKey, str] = field(default_factory=dict)
    """The step whose path an agent has in the tree."""
    ahead: dict[str, AgentKey] = field(default_factory=dict)
    """Steps not sent yet whose prefix is in the tree → the agent whose path that is."""
    _distance: dict[str, dict[str, int]] = field(default_factory=dict)
    """Application → step → steps to execution, until something happens in the application."""
    _loading: set[AgentKey] = field(default_factory=set)
    _checked_s: float = -1.0

    def __post_init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self.successors: dict[str, tuple[str, ...]] = {}

    def prepare(self, knowledge: Knowledge) -> None:
        super().prepare(knowledge)
        self.steps = knowledge.workflow.steps
        self.successors = dict(knowledge.workflow.successors)

    # -- told ---------------------------------------------------------------------------------

    def request_queued(self, request: Request, now_s: float) -> None:
        if request.agent is None:
            return  # nobody would tell of its end
        self.in_server.add(request.rid)
        self.ahead.pop(request.rid, None)
        self._changed(request)

    def request_finished(self, request: Request, now_s: float) -> None:
        self.in_server.discard(request.rid)
        self.finished.add(request.rid)
        if request.key is not None:
            self.last_step[request.key] = request.rid
            for rid in self.successors.get(request.rid, ()):
                if rid not in self.in_server and source_of(self.steps[rid]) == request.rid:
                    self.ahead[rid] = request.key
        self._changed(request)

    def agent_finished(self, key: AgentKey, now_s: float) -> None:
        self.last_step.pop(key, None)
        self._loading.discard(key)

    def _changed(self, request: Request) -> None:
        step = self.steps.get(request.rid)
        if step is not None:
            self._distance.pop(step.application, None)
            for rid in self.successors.get(request.rid, ()):
                self._distance.pop(self.steps[rid].application, None)

    # -- steps to execution -------------------------------------------------------------------

    def steps_to(self, rid: str) -> int:
        """Steps to execution of a step that has not ended."""
        known = self._distance.setdefault(self.steps[rid].application, {})
        stack = [rid]
        while stack:
            step = self.steps[stack[-1]]
            if step.rid in self.in_server:
                known[step.rid] = 0
            before = [r for r in step.wait_for if r not in self.finished]
            missing = [r for r in before if r not in known and r not in self.in_server]
            if step.rid not in known and missing:
                stack.extend(missing)
                continue
            stack.pop()
            known.setdefault(step.rid, 1 + max((known.get(r, 0) for r in before), default=0))
        return known[rid]

    def eviction_rank(self, node: EvictionCandidate) -> tuple[float, ...]:
        return (-self._next_use(node), node.last_access)

    def _next_use(self, node: EvictionCandidate) -> float:
        """The fewest steps to one that will read the node."""
        nearest = NEVER
        for key in node.agents:
            rid = self.last_step.get(key)
            if rid is None:
                continue
            if rid not in self.steps:
                nearest = min(nearest, 1)
                continue
            for after in self.successors[rid]:
                reused = (self.steps[after].reuses or {}).get(rid, 0)
                if after not in self.finished and reused > node.depth_tokens:
                    nearest = min(nearest, self.steps_to(after))
        return nearest

    # -- asked --------------------------------------------------------------------------------

    def decide(self, view: View) -> Iterable[Decision]:
        if not self._loading and view.now_s - self._checked_s < CHECK_EVERY_S:
            return ()
        self._checked_s = view.now_s
        return self._loads(view)

    def _loads(self, view: View) -> Iterator[Decision]:
        for key in list(self._loading):
            if view.is_kept(key):
                yield LetGo(key, "loaded")
            if not view.is_uploading(key):
                self._loading.discard(key)
        if view.left_waiting:
            return
        room = view.free_tokens + view.evictable_tokens
        room -= sum(request.cached_tokens for request in view.queue)
        if room <= 0 or not self.ahead:
            return
        near = {
            rid: steps for rid in self.ahead if (steps := self.steps_to(rid)) <= LOAD_AHEAD_STEPS
        }
        for rid in sorted(near, key=near.__getitem__):
            key = self.ahead[rid]
            missing = view.cached(key).host_only_tokens
            if 0 < missing <= room:
                yield Upload(key, f"step {near[rid]}")
                if view.is_uploading(key):
                    self._loading.add(key)
                    return

    def admits(self, request: Request, view: View) -> bool:
        if not self._loading:
            return True
        step = self.steps.get(request.rid)
        rid = None if step is None else source_of(step)
        key = request.key if rid is None else self.steps[rid].key
        return key is None or not view.is_uploading(key)


def source_of(step: Step) -> str | None:
    """The earlier step that the step's prompt has most in common with; None if with none."""
    reuses = step.reuses or {}
    best = max(reuses, key=reuses.__getitem__, default=None)
    return best if best is not None and reuses[best] > 0 else None
