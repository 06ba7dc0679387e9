"""Runs any ``Policy`` on the cache: tells it what happens, asks it, and applies its decisions."""

import importlib
from typing import TYPE_CHECKING, Any

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Change, Transition
from tokencake_sglang.config import ConfigError, TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.eviction import PolicyEviction
from tokencake_sglang.engine.rank import RankPlanner
from tokencake_sglang.engine.residents import Resident
from tokencake_sglang.engine.step_gap import StepGap, piece_tokens
from tokencake_sglang.observability.decisions import Action
from tokencake_sglang.policy import (
    NOTHING_CACHED,
    Cached,
    Decision,
    Discard,
    Insure,
    Keep,
    LetGo,
    Machine,
    Policy,
    Release,
    Request,
    Upload,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder

NO_AUTOMATIC_BACKUP = 1 << 30
"""Hits after which HiCache would copy a node by itself: never."""


def check_policy(config: TokencakeConfig) -> None:
    """Looks for the class that a scheduler asks for only after the model was loaded.

    Raises:
        ConfigError: as ``policy_class``.
    """
    if config.policy != "tokencake":
        policy_class(config.policy)


def policy_class(name: str) -> type[Policy]:
    """The class that ``module:Class`` names.

    Raises:
        ConfigError: when there is no such class, or it is no ``Policy``.
    """
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--tokencake-policy: {name!r} cannot be loaded: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ConfigError(
            f"--tokencake-policy: {name!r} is not a subclass of tokencake_sglang.policy.Policy"
        )
    return found


class CachedPath:
    """``Cached`` of a path in the tree, looked up when asked."""

    __slots__ = ("_cache", "_leaf_id")

    def __init__(self, cache: TokencakeCache, leaf_id: int) -> None:
        self._cache = cache
        self._leaf_id = leaf_id

    @property
    def tokens(self) -> int:
        return sum(self._cache.tokens_by_tier(self._leaf_id))

    @property
    def host_only_tokens(self) -> int:
        return self._cache.host_only_tokens(self._leaf_id)

    @property
    def releasable_tokens(self) -> int:
        return self._cache.releasable_tokens(self._leaf_id)

    @property
    def exclusive_tokens(self) -> int:
        return self._cache.discardable_tokens(self._leaf_id)

    @property
    def uncopied_tokens(self) -> int:
        return self._cache.uncopied_tokens(self._leaf_id)


class PolicyPlanner(RankPlanner):
    """The mechanism under a policy; it is also the ``View`` that the policy sees."""

    def __init__(
        self,
        config: TokencakeConfig,
        cache: TokencakeCache,
        **facts: Any,
    ) -> None:
        super().__init__(config, cache, **facts)
        self.machine = Machine(
            pool_tokens=self.pool_tokens,
            host_tokens=cache.cache_controller.mem_pool_host.size,
            page_size=cache.page_size,
            link_tokens_per_s=config.link_bytes_per_s / self.kv_bytes_per_token,
        )
        self.policy = policy_class(config.policy)(self.machine)
        if not self.policy.automatic_backup:
            cache.write_through_threshold = NO_AUTOMATIC_BACKUP
        if self.policy.orders_eviction:
            # Bound by SGLang at the first eviction, so it has to be in place before.
            cache.tree_core.eviction_strategy = PolicyEviction(self.policy, self.agents_by_leaf)
        self.queue: list[Request] = []
        self.running: list[Request] = []
        self.requests: dict[str, Request] = {}
        self._kept: dict[AgentKey, Resident] = {}  # oldest pin first
        self._uploading: AgentKey | None = None
        self._keep_free_tokens = self._committed_tokens = 0
        self._step_gap = StepGap()
        self.refused = False
        """Whether the policy refused a request in this attempt at admission."""
        self._refused_all = False

    # -- the view -----------------------------------------------------------------------------

    @property
    def free_tokens(self) -> int:
        return self.cache.token_to_kv_pool_allocator.available_size()

    @property
    def evictable_tokens(self) -> int:
        return self.cache.full_evictable_size()

    def cached(self, key: AgentKey) -> Cached:
        resident = self.residents.get(key)
        if resident is None:
            return NOTHING_CACHED
        return CachedPath(self.cache, resident.leaf_id)

    def is_kept(self, key: AgentKey) -> bool:
        return key in self._kept

    def is_uploading(self, key: AgentKey) -> bool:
        resident = self.residents.get(key) if key == self._uploading else None
        return resident is not None and self.cache.is_uploading(resident.leaf_id)

    # -- what happens -------------------------------------------------------------------------

    def follow(self, transition: Transition) -> None:
        agent, call, now_s = transition.agent, transition.call, self.now_s
        match transition.change:
            case Change.CALL_STARTED if call is not None:
                self.policy.call_started(agent, call, now_s)
            case Change.CALL_FINISHED | Change.CALL_LAPSED if call is not None:
                self.policy.call_finished(agent, call, now_s)
            case Change.AGENT_FINISHED | Change.AGENT_FORGOTTEN:
                self._let_go(agent.key, transition.change)
                self.policy.agent_finished(agent.key, now_s)
                if transition.change is Change.AGENT_FORGOTTEN:
                    self.forget(agent.key)

    def turn_ended(self, resident: Resident, req: "Req") -> None:
        """The pin follows the agent's new path."""
        if resident.agent.key in self._kept:
            self.cache.pin(resident.hold_holder, resident.leaf_id)
        request = self.requests.pop(req.rid, None)
        if request is not None:
            request.tokens = len(req.origin_input_ids) + len(req.output_ids)
            self.policy.request_finished(request, self.now_s)

    def cleared(self) -> None:
        self._kept.clear()
        self._uploading = None

    def batch_admitted(self, batch: "ScheduleBatch") -> None:
        self.await_upload(batch)
        for req in batch.reqs:
            request = self.request_of(req)
            if request.admitted_s is None:
                request.admitted_s = self.now_s
                self.policy.request_admitted(request, self.now_s)
        self._let_go_of_used(batch.reqs)

    def _let_go_of_used(self, reqs: "list[Req]") -> None:
        """An admitted request holds its own locks: what it reads needs no pin of ours."""
        if not self._kept:
            return
        used = {node.id for req in reqs for node in self.cache.path(req.last_node)}
        for key, resident in list(self._kept.items()):
            if resident.leaf_id in used:
                self._let_go(key, "admitted")

    # -- each step ----------------------------------------------------------------------------

    def step(
        self, waiting_queue: "list[Req]", running: "list[Req]", chunked: "Req | None" = None
    ) -> None:
        if chunked is not None and not any(req is chunked for req in running):
            running = [*running, chunked]
        self._look_at(waiting_queue, running)
        committed_tokens = self.committed_tokens(running, chunked)
        self.keep_free(committed_tokens)
        self._committed_tokens = committed_tokens
        self._keep_free_tokens = committed_tokens + 64 * len(running)
        self._finish_upload()
        for decision in self.policy.decide(self):
            self._apply(decision)
        self.keep_free(committed_tokens)  # once more: pins are not asked whether there is room

    def closes_admission(self, *, admitted: bool) -> bool:
        memory_full = super().closes_admission(admitted=admitted)
        self._refused_all = self.refused and not admitted
        self.refused = False
        return memory_full or self._refused_all

    def reopens_admission(self, waiting_queue: "list[Req]") -> bool:
        if self.has_changed(waiting_queue):
            return self.policy.reopens_admission or self._refused_all
        if not self._refused_all:
            return False
        self.order(waiting_queue)
        return any(self.policy.admits(request, self) for request in self.queue)

    def order(self, waiting_queue: "list[Req]") -> None:
        if not waiting_queue:
            return
        self.queue = [self.request_of(req) for req in waiting_queue]
        order = self.policy.order(self)
        if order is not None:
            waiting_queue[:] = [waiting_queue[place] for place in order]
            self.queue = [self.queue[place] for place in order]

    def adder_class(self, base: "type[PrefillAdder]") -> "type[PrefillAdder] | None":
        from tokencake_sglang.engine.admission import asking_adder

        return asking_adder(base, self)

    def _look_at(self, waiting_queue: "list[Req]", running: "list[Req]") -> None:
        self.queue = [self.request_of(req) for req in waiting_queue]
        # Until SGLang filters its batch, requests whose end the policy was told are still in it.
        self.running = [self.request_of(req) for req in running if not req.finished()]
        self._step_gap.tell(self.now_s, forward=bool(self.running))
        for request, req in zip(self.queue, waiting_queue, strict=True):
            if request.admitted_s is not None and req.retraction_count > request.retractions:
                request.retractions = req.retraction_count
                request.admitted_s = None
                self.policy.request_retracted(request, self.now_s)
        if len(self.requests) > 2 * (len(self.queue) + len(self.running)) + 64:
            seen = {request.rid for request in (*self.queue, *self.running)}
            # Untagged and aborted requests end without a word to the tree.
            self.requests = {rid: r for rid, r in self.requests.items() if rid in seen}

    def request_of(self, req: "Req") -> Request:
        """The policy's record of a request, brought up to date."""
        request = self.requests.get(req.rid)
        if request is None:
            request = self.requests[req.rid] = Request(
                rid=req.rid,
                agent=self.agent_of(req),
                queued_s=self.now_s,
                prompt_tokens=len(req.origin_input_ids),
                output_limit=req.sampling_params.max_new_tokens,
                tokens=len(req.origin_input_ids) + len(req.output_ids),
                cached_tokens=req.prefix_len,
            )
            self.policy.request_queued(request, self.now_s)
        request.tokens = len(req.origin_input_ids) + len(req.output_ids)
        request.cached_tokens = req.prefix_len
        return request

    # -- decisions ----------------------------------------------------------------------------

    def _apply(self, decision: Decision) -> None:
        resident = self.residents.get(decision.key)
        if resident is None:
            return
        match decision:
            case Keep():
                if decision.key not in self._kept and self.cache.pin(
                    resident.hold_holder, resident.leaf_id
                ):
                    self._kept[decision.key] = resident
                    self._record(decision, Action.HOLD, resident.tokens)
            case LetGo():
                self._let_go(decision.key, decision.reason)
            case Insure():
                self._insure(decision, resident)
            case Release():
                if tokens := self.cache.release(resident.leaf_id):
                    self._record(decision, Action.RELEASE, tokens)
            case Discard():
                if tokens := self.cache.discard(resident.leaf_id):
                    self._record(decision, Action.DISCARD, tokens)
            case Upload():
                self._upload(decision, resident)

    def _insure(self, decision: Insure, resident: Resident) -> None:
        """A copy locks the path until it is done: what others are sure to take must be left."""
        if not self.cache.leaves_room(resident.leaf_id, self._committed_tokens):
            return
        if tokens := self.cache.insure(resident.leaf_id):
            self._record(decision, Action.INSURE, tokens)

    def _upload(self, decision: Upload, resident: Resident) -> None:
        if decision.key in self._kept or not self.cache.can_start_upload():
            return
        piece = piece_tokens(
            self.config.upload_piece_tokens,
            self.machine.link_tokens_per_s,
            self._step_gap.longest_s,
        )
        tokens = self.cache.upload(resident.leaf_id, piece, self._keep_free_tokens)
        if tokens:
            self._uploading = decision.key
            self._record(decision, Action.UPLOAD, tokens)

    def _finish_upload(self) -> None:
        """Pins a path once all of it is there."""
        key = self._uploading
        resident = self.residents.get(key) if key is not None else None
        if resident is None or self.cache.is_uploading(resident.leaf_id):
            return
        self._uploading = None
        host = self.cache.host_only_tokens(resident.leaf_id)
        if host == 0 and self.cache.pin(resident.hold_holder, resident.leaf_id):
            self._kept[resident.agent.key] = resident
            self.log.record(self.now_s, resident.agent.key, Action.HOLD, "uploaded")

    def _let_go(self, key: AgentKey, reason: str) -> None:
        resident = self._kept.pop(key, None)
        if resident is not None:
            self.cache.unpin(resident.hold_holder)
            self.log.record(self.now_s, key, Action.UNHOLD, reason)

    def drop_one_pin(self, reason: str) -> bool:
        if not self._kept:
            return False
        self._let_go(self.policy.gives_up(tuple(self._kept), self), reason)
        return True

    def _record(self, decision: Decision, action: Action, tokens: int) -> None:
        self.log.record(self.now_s, decision.key, action, decision.reason, tokens)

    # -- for status ---------------------------------------------------------------------------

    def snapshot_of_policy(self) -> dict[str, Any]:
        return {"policy": self.config.policy, "kept": len(self._kept)}
