"""TokenCake's own planner: both halves, temporal and spatial."""

from typing import TYPE_CHECKING, Any

from tokencake_sglang.agents.table import Change, Transition
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.applications import Applications, Outside
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.copies import Copies
from tokencake_sglang.engine.headroom import Headroom
from tokencake_sglang.engine.next_use import NextUseEviction
from tokencake_sglang.engine.rank import RankPlanner
from tokencake_sglang.engine.residents import Resident
from tokencake_sglang.engine.spatial import SpatialExecutor
from tokencake_sglang.engine.storage import StorageFetches
from tokencake_sglang.engine.temporal import TemporalExecutor
from tokencake_sglang.engine.uploads import Uploads
from tokencake_sglang.observability.decisions import Action
from tokencake_sglang.spatial.shares import UNTAGGED, Tenant
from tokencake_sglang.temporal.duration import DurationModel
from tokencake_sglang.temporal.returns import learn
from tokencake_sglang.temporal.upload import UploadTiming

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

GROWTH_TOKENS = 64
"""Decode growth counted for each running request."""

HOST_SHARE = 0.95
"""Part of the host tier that the working set may fill."""

LOCKED_SHARE = 0.25
"""Part of the pool that it may fill besides: what runs is locked on the device and needs no copy."""


class Planner(RankPlanner):
    """Drives both executors between scheduler steps."""

    def __init__(
        self,
        config: TokencakeConfig,
        cache: TokencakeCache,
        **facts: Any,
    ) -> None:
        super().__init__(config, cache, **facts)
        self._in_time, self._in_space = config.temporal_on, config.spatial_on
        self.eviction = NextUseEviction(self.residents, self.agents_by_leaf)
        self.copies: Copies | None = None
        if config.temporal_on and "eviction" not in config.without:
            self.copies = Copies(cache, self.eviction, self.log)
        self.spatial = SpatialExecutor(config, cache, self.agent_of, self.log, self.pool_tokens)
        timing = UploadTiming(
            link_tokens_per_s=config.link_bytes_per_s / self.kv_bytes_per_token,
            lead_s=config.upload_lead_s,
        )
        self.temporal = TemporalExecutor(
            config,
            cache,
            self.residents,
            self.log,
            uploads=Uploads(
                config,
                cache,
                timing,
                self.residents,
                self.log,
                pool_tokens=self.pool_tokens,
            ),
            storage=StorageFetches(
                cache,
                self.residents,
                self.agents_by_leaf,
                self.log,
                self.retarget,
                self.kv_bytes_per_token,
            ),
            copies=self.copies,
            is_critical=self.spatial.is_critical,
        )
        weights: dict[Tenant, float] = {}
        weights.update(config.tenants)
        if config.untagged_weight:
            weights[UNTAGGED] = config.untagged_weight
        self.applications = Applications(
            cache,
            self.agent_of,
            self.table.of_application,
            self.table.declared,
            self.residents,
            pool_tokens=self.pool_tokens,
            kept_tokens=self._kept_tokens(),
            weights=weights,
            quotas=config.tenant_quotas,
            # Where there are priorities SGLang preempts whoever is in the way of a higher one.
            bounded="working-set" not in config.without and not self.by_priority,
            knows_paths="paths" not in config.without,
        )
        self.headroom = Headroom(self.agent_of, least_tokens=self.decodes_beside_prompt)
        self.orders = "order" not in config.without
        self.queue: list[Req] = []
        """At the last ``order``, which precedes each attempt at admission."""
        self._weighs_untagged = UNTAGGED in weights
        self._stepped_sequence = 0  # of the last event before the last step
        self._found_over_quota = False
        self._closed_for_newcomers = False  # by the last attempt, and not by SGLang
        if config.temporal_on:
            if self.copies is not None:
                # Bound by SGLang at the first eviction, so it has to be in place before.
                cache.tree_core.eviction_strategy = self.eviction
                cache.may_copy = self._may_copy
            cache.on_evict = self._evicted
            cache.on_remove = self._removed

    def _kept_tokens(self) -> int:
        """How much KV of agents that come and go the tiers can keep between them."""
        host_tokens = int(HOST_SHARE * self.cache.cache_controller.mem_pool_host.size)
        if self.copies is None or not self.copies.on:  # then the host mirrors the device
            return max(self.pool_tokens, host_tokens)
        return int(LOCKED_SHARE * self.pool_tokens) + host_tokens

    # -- the event log ------------------------------------------------------------------------

    def durations_known(self, durations: DurationModel) -> None:
        self.temporal.durations_known(durations)

    def application_declared(self, application: str) -> None:
        self.applications.declared_anew(application)

    def follow(self, transition: Transition) -> None:
        if self._in_time:
            self._follow_in_time(transition)
        if self._in_space:
            self._follow_in_space(transition)
        if transition.change is Change.AGENT_FORGOTTEN:
            self.forget(transition.agent.key)

    def _follow_in_time(self, transition: Transition) -> None:
        agent, call = transition.agent, transition.call
        learn(self.temporal.returns.durations, transition, self.now_s)
        match transition.change:
            case Change.REQUEST_BEGAN:
                self.temporal.returned(agent, self.now_s)
            case Change.REQUEST_ENDED:
                self.temporal.let_go(agent, self.now_s, "request_ended")
            case Change.CALL_STARTED if call is not None:
                self.temporal.call_started(agent, call)
            case Change.CALL_PROGRESSED if call is not None:
                self.temporal.call_progressed(agent, call, self.now_s)
            case Change.CALL_FINISHED if call is not None:
                self.temporal.call_finished(agent, call, self.now_s)
            case Change.CALL_LAPSED if call is not None:
                self.temporal.call_lapsed(agent, call, self.now_s)
            case Change.AGENT_FINISHED | Change.AGENT_FORGOTTEN:
                self.temporal.finished(agent, self.now_s)
                if (resident := self.residents.get(agent.key)) is not None and agent.finished:
                    self.eviction.supersede(self.cache.path(resident.leaf_id))

    def _follow_in_space(self, transition: Transition) -> None:
        agent = transition.agent
        match transition.change:
            case Change.REQUEST_BEGAN:
                self.applications.request_began(agent, self.now_s)
            case Change.REQUEST_ENDED:
                self.applications.request_ended(agent, self.now_s)
            case Change.AGENT_FINISHED | Change.AGENT_FORGOTTEN:
                if (resident := self.residents.get(agent.key)) is not None:
                    self.spatial.left(resident, self.now_s, transition.change)
                forgotten = transition.change is Change.AGENT_FORGOTTEN
                self.applications.agent_left(
                    agent, self.now_s, forgotten=forgotten, event=self.sequence
                )

    # -- what the cache reports ---------------------------------------------------------------

    def _turn_ended(self, req: "Req", leaf_id: int) -> None:
        agent = self.agent_of(req)
        before = None if agent is None else self.residents.get(agent.key)
        old_leaf_id = None if before is None else before.leaf_id
        super()._turn_ended(req, leaf_id)
        if agent is None:
            self.applications.untagged_ended()
        if old_leaf_id is not None and old_leaf_id != leaf_id:
            kept = {node.id for node in self.cache.path(leaf_id)}
            left = [node for node in self.cache.path(old_leaf_id) if node.id not in kept]
            self.eviction.supersede(left)

    def turn_ended(self, resident: Resident, req: "Req") -> None:
        if self._in_space:
            tenant = self.applications.tenant_of(resident.agent)
            self.spatial.turn_ended(resident, self.now_s, tenant)
            self.applications.took_turn(resident, req.rid, self.now_s)
            self.headroom.turn_ended(resident.agent, req)
        if self._in_time:
            self.temporal.turn_ended(resident)
            if resident.agent.finished:  # by a signal that overtook its last turn
                self.eviction.supersede(self.cache.path(resident.leaf_id))

    def _evicted(self, node: "UnifiedTreeNode") -> None:
        """SGLang gives up the node's device slots."""
        if self.copies is not None:
            self.copies.moved()
        if self.agents_by_leaf:
            for key in self.eviction.claims(node):
                self.temporal.evicted(key, len(node.key))

    def _removed(self, node: "UnifiedTreeNode") -> None:
        """SGLang takes the node out of the tree. Paths that ended there end above it, so that the
        rest is still known to be used when its agent returns."""
        if node.parent is None:
            return
        if self.temporal.storage.on:
            self.temporal.storage.removed(node)
            return
        for key in self.agents_by_leaf.get(node.id, ()):
            resident = self.residents[key]
            if not resident.agent.finished:
                self.temporal.lost(key, len(node.key))
                self.retarget(resident, node.parent.id)

    def _may_copy(self, tokens: int) -> bool:
        """Whether SGLang shall copy what was just written to the host tier."""
        # Without agents SGLang decides.
        if self.copies is None or not self.residents or self.copies.are_made_at_once(tokens):
            return True
        self.log.count(Action.INSURE, "later")
        return False

    def cleared(self) -> None:
        self.temporal.clear()
        self.spatial.clear()

    # -- each scheduler step ------------------------------------------------------------------

    def step(
        self, waiting_queue: "list[Req]", running: "list[Req]", chunked: "Req | None" = None
    ) -> None:
        heard = self.sequence != self._stepped_sequence
        self._stepped_sequence = self.sequence
        if heard:  # time moves with events, and most steps are between two
            self.eviction.tell(self.now_s)
        if self._in_space:
            admitted = running
            if chunked is not None and chunked not in running:  # the last batch may be of decoding
                admitted = [*running, chunked]
            self.applications.step(admitted, self.now_s)
            if self._weighs_untagged:
                all_requests = (waiting_queue, admitted) if len(self.table) else ([], [])
                self.applications.look_at_untagged(*all_requests, self.now_s)
        if not self.residents:
            return
        if self.cache.pin_count:
            self.spatial.step(self.now_s)
            self.keep_free(self.committed_tokens(running, chunked))
        if self._in_time:
            self._step_in_time(waiting_queue, running, chunked, heard=heard)

    def _step_in_time(
        self,
        waiting_queue: "list[Req]",
        running: "list[Req]",
        chunked: "Req | None",
        *,
        heard: bool,
    ) -> None:
        if self.left_waiting and self.cache.pin_count:
            self.temporal.uploads.drop_holds_of_queued(self.now_s)
        # Until SGLang filters its batch, requests that have ended are still in it.
        goes_on = chunked is not None or any(not req.finished() for req in running)
        self.temporal.tell(self.now_s, forward=goes_on)
        copies_due = self.copies is not None and self.copies.due
        if not (heard or copies_due or self.temporal.has_work):
            return
        requests = len(running) + (chunked is not None)
        keep_free_tokens = self.committed_tokens(running, chunked) + GROWTH_TOKENS * requests
        self.temporal.step(
            self.now_s, queue_waits=bool(waiting_queue), keep_free_tokens=keep_free_tokens
        )
        if self.copies is not None:
            self.copies.step(self.now_s, keep_free_tokens)

    def reopens_admission(self, waiting_queue: "list[Req]") -> bool:
        """Where there are tagged requests: without any, admission is SGLang's."""
        if "reopening" in self.config.without:
            return False
        if not any(self.agent_of(req) is not None for req in waiting_queue):
            # Newcomers for which it was closed may have gone: nobody waits for their sake.
            return self._closed_for_newcomers and bool(waiting_queue)
        return self.has_changed(waiting_queue) or self.applications.may_enter(self.now_s)

    def order(self, waiting_queue: "list[Req]") -> None:
        self.queue = waiting_queue
        self._closed_for_newcomers = False
        if self._in_space:
            self.applications.look_at_queue()
            if self.orders:
                self.spatial.order(waiting_queue, self.applications, self.now_s)

    def adder_class(self, base: "type[PrefillAdder]") -> "type[PrefillAdder] | None":
        if not self._in_space:
            return None
        from tokencake_sglang.engine.admission import reserving_adder
        from tokencake_sglang.engine.headroom import headroom_adder
        from tokencake_sglang.engine.prefill_share import sharing_adder
        from tokencake_sglang.engine.working_set import working_set_adder

        if "sharing" not in self.config.without:
            base = sharing_adder(base, self)
        if "headroom" not in self.config.without:
            base = headroom_adder(base, self.headroom)
        return reserving_adder(working_set_adder(base, self), self)

    def batch_admitted(self, batch: "ScheduleBatch") -> None:
        """Makes the batch wait for uploads it reads, and ends its agents' holds."""
        if self.residents:
            self.await_upload(batch)
        if self._in_space:
            self.applications.admitted(batch.reqs, self.now_s)
        if not self._in_time:
            return
        if self.copies is not None:
            self.copies.moved()
        for req in batch.reqs:
            agent = self.agent_of(req)
            if agent is not None:
                self.temporal.admitted(
                    agent, self.now_s, req.host_loaded_length or 0, req.storage_hit_length
                )

    def deferred(self, req: "Req") -> None:
        """Admission left the reserve to critical agents and kept ``req`` waiting."""
        tagged = self.agent_of(req) is not None
        self.log.count(Action.DEFER, "reserve_tagged" if tagged else "reserve_untagged")

    def kept_outside(self, req: "Req", why: Outside) -> None:
        """Admission left a newcomer outside the working set."""
        self.log.count(Action.DEFER, why)
        if why is Outside.NO_ROOM:
            self.found_memory_full = True  # no further attempt before something has changed
        else:
            self._found_over_quota = True

    def closes_admission(self, *, admitted: bool) -> bool:
        # Behind newcomers whose tenants are over their quotas others may still have to be looked
        # at, because the step had no time for another prompt.
        over_quota, self._found_over_quota = self._found_over_quota, False
        closes = super().closes_admission(admitted=admitted) or (over_quota and not admitted)
        self._closed_for_newcomers = self._closed_for_newcomers or closes
        return closes

    def drop_one_pin(self, reason: str) -> bool:
        if self.temporal.uploads.drop_one_hold(self.now_s, reason):
            return True
        return self.spatial.drop_one_pin(self.now_s, reason)

    def snapshot_of_policy(self) -> dict[str, Any]:
        return {
            "temporal": self.temporal.snapshot(),
            "spatial": self.spatial.snapshot() | self.applications.snapshot(self.now_s),
        }
