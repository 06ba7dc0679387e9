"""TokenCake's own planner: both halves, temporal and spatial."""

from typing import TYPE_CHECKING, Any

from tokencake_sglang.agents.table import Agent, Change, Transition
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.next_use import NextUseEviction
from tokencake_sglang.engine.rank import RankPlanner
from tokencake_sglang.engine.residents import Resident
from tokencake_sglang.engine.spatial import SpatialExecutor
from tokencake_sglang.engine.temporal import TemporalExecutor
from tokencake_sglang.observability.decisions import Action
from tokencake_sglang.temporal.policy import FarthestReturnFirst

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder

GROWTH_TOKENS = 64
"""Decode growth counted for each running request."""

UPLOAD_HEADROOM = 0.4
"""Part of the pool that an upload leaves free or evictable. Where memory is scarce an early upload
makes somebody else wait longer than it spares its agent."""


class Planner(RankPlanner):
    """Drives both executors between scheduler steps."""

    def __init__(
        self,
        config: TokencakeConfig,
        cache: TokencakeCache,
        **facts: Any,
    ) -> None:
        super().__init__(config, cache, **facts)
        policy = FarthestReturnFirst(
            link_tokens_per_s=config.link_bytes_per_s / self.kv_bytes_per_token,
            lead_s=config.upload_lead_s,
        )
        self.temporal = TemporalExecutor(
            config,
            cache,
            policy,
            self.residents,
            self.log,
            hold_budget_tokens=int(config.hold_max * self.pool_tokens),
            host_budget_tokens=int(
                config.host_hold_max * cache.cache_controller.mem_pool_host.size
            ),
        )
        self.spatial = SpatialExecutor(config, cache, self.agent_of, self.log, self.pool_tokens)
        self.eviction = NextUseEviction(self.residents, self.agents_by_leaf)
        if config.temporal_on:
            # Bound by SGLang at the first eviction, so it has to be in place before.
            cache.tree_core.eviction_strategy = self.eviction

    # -- the event log ------------------------------------------------------------------------

    def follow(self, transition: Transition) -> None:
        agent, call = transition.agent, transition.call
        match transition.change:
            case Change.REQUEST_BEGAN:
                if self.config.temporal_on:
                    self.temporal.returned(agent, self.now_s)
                self.spatial.request_began(agent, self.now_s)
            case Change.REQUEST_ENDED:
                self.temporal.let_go(agent, self.now_s, "request_ended")
                self.spatial.request_ended(agent, self.now_s)
            case Change.CALL_STARTED if self.config.temporal_on and call is not None:
                self.temporal.call_started(agent, call)
            case Change.CALL_FINISHED if self.config.temporal_on and call is not None:
                self.temporal.call_finished(agent, call, self.now_s)
            case Change.CALL_LAPSED if self.config.temporal_on and call is not None:
                self.temporal.call_lapsed(agent, call, self.now_s)
            case Change.AGENT_FINISHED | Change.AGENT_FORGOTTEN:
                self._let_go(agent, transition.change)

    def _let_go(self, agent: Agent, change: Change) -> None:
        if self.config.temporal_on:
            self.temporal.finished(agent, self.now_s)
        resident = self.residents.get(agent.key)
        if resident is not None:
            self.spatial.left(resident, self.now_s, change)
        self.spatial.agent_left(agent)
        if change is Change.AGENT_FORGOTTEN:
            self.temporal.forget(agent.key)
            self.forget(agent.key)

    # -- what the cache reports ---------------------------------------------------------------

    def _turn_ended(self, req: "Req", leaf_id: int) -> None:
        agent = self.agent_of(req)
        before = None if agent is None else self.residents.get(agent.key)
        old_leaf_id = None if before is None else before.leaf_id
        super()._turn_ended(req, leaf_id)
        if old_leaf_id is not None and old_leaf_id != leaf_id:
            kept = {node.id for node in self.cache.path(leaf_id)}
            left = [node for node in self.cache.path(old_leaf_id) if node.id not in kept]
            self.eviction.supersede(left)

    def turn_ended(self, resident: Resident, req: "Req") -> None:
        if self.config.spatial_on:
            self.spatial.turn_ended(resident, self.now_s)
            self.spatial.took_turn(resident, req.rid, self.now_s)
        if self.config.temporal_on:
            self.temporal.turn_ended(resident)

    def cleared(self) -> None:
        self.temporal.clear()
        self.spatial.clear()

    # -- each scheduler step ------------------------------------------------------------------

    def step(
        self, waiting_queue: "list[Req]", running: "list[Req]", chunked: "Req | None" = None
    ) -> None:
        self.eviction.tell(self.now_s)
        self.spatial.step(self.now_s)
        if not self.residents:
            return
        committed_tokens = self.committed_tokens(running, chunked)
        self.keep_free(committed_tokens)
        if self.config.temporal_on:
            if self.left_waiting and self.cache.pin_count:
                self.temporal.drop_holds_of_queued(self.now_s)
            self.temporal.step(
                self.now_s,
                shortage_tokens=self._shortage_tokens(waiting_queue, running),
                queue_waits=bool(waiting_queue),
                keep_free_tokens=max(
                    committed_tokens + GROWTH_TOKENS * (len(running) + (chunked is not None)),
                    int(UPLOAD_HEADROOM * self.pool_tokens),
                ),
            )

    def reopens_admission(self, waiting_queue: "list[Req]") -> bool:
        """Where there are tagged requests: without any, admission is SGLang's."""
        if not self.config.spatial_on:
            return False
        if not self.has_changed(waiting_queue) and not self.spatial.may_enter():
            return False
        return any(self.agent_of(req) is not None for req in waiting_queue)

    def order(self, waiting_queue: "list[Req]") -> None:
        if self.config.spatial_on:
            self.spatial.order(waiting_queue)

    def adder_class(self, base: "type[PrefillAdder]") -> "type[PrefillAdder] | None":
        if not self.config.spatial_on:
            return None
        from tokencake_sglang.engine.admission import reserving_adder
        from tokencake_sglang.engine.working_set import working_set_adder

        return reserving_adder(working_set_adder(base, self), self)

    def batch_admitted(self, batch: "ScheduleBatch") -> None:
        """Makes the batch wait for uploads it reads, and ends its agents' holds."""
        if self.residents:
            self.await_upload(batch)
        for req in batch.reqs:
            agent = self.agent_of(req)
            if agent is not None:
                self.spatial.admitted(agent, req, self.now_s)
                self.temporal.admitted(agent, self.now_s, req.host_loaded_length or 0)

    def deferred(self, req: "Req") -> None:
        """Admission left the reserve to critical agents and kept ``req`` waiting."""
        tagged = self.agent_of(req) is not None
        self.log.count(Action.DEFER, "reserve_tagged" if tagged else "reserve_untagged")

    def kept_outside(self, req: "Req") -> None:
        """Admission left a newcomer outside the working set."""
        self.log.count(Action.DEFER, "working_set")
        self.found_memory_full = True  # no further attempt before something has changed

    def drop_one_pin(self, reason: str) -> bool:
        return self.temporal.drop_one_hold(self.now_s, reason) or self.spatial.drop_one_pin(
            self.now_s, reason
        )

    def _shortage_tokens(self, waiting_queue: "list[Req]", running: "list[Req]") -> int:
        """How many more slots the next admission and decode steps need than are free.

        Only the queue's head counts: what is given up for those behind it would be read back
        before they are admitted.
        """
        if not waiting_queue:
            return 0
        req = waiting_queue[0]
        needed = len(req.origin_input_ids) + len(req.output_ids)
        agent = self.agent_of(req)
        resident = self.residents.get(agent.key) if agent is not None else None
        if resident is not None:
            needed -= min(needed, self.cache.tokens_by_tier(resident.leaf_id)[0])
        needed += min(GROWTH_TOKENS, req.sampling_params.max_new_tokens)
        needed += GROWTH_TOKENS * len(running)
        return max(0, needed - self.cache.token_to_kv_pool_allocator.available_size())

    def snapshot_of_policy(self) -> dict[str, Any]:
        return {"temporal": self.temporal.snapshot(), "spatial": self.spatial.snapshot()}
