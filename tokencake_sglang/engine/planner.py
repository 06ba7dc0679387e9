"""One rank's planner: replays the event log and drives the cache between scheduler steps.

It reads no clock and decides from the log and the tree only, so every rank of a tensor- or
pipeline-parallel group does the same at the same step.
"""

import logging
from typing import TYPE_CHECKING, Any

from tokencake_sglang.agents.errors import AgentError
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, AgentTable, Change, Transition
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.messages import TokencakeEvent
from tokencake_sglang.engine.request_tag import agent_key_of
from tokencake_sglang.engine.residents import Resident
from tokencake_sglang.engine.spatial import SpatialExecutor
from tokencake_sglang.engine.temporal import TemporalExecutor
from tokencake_sglang.observability.decisions import Action, DecisionLog
from tokencake_sglang.temporal.policy import FarthestReturnFirst, TemporalPolicy

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

logger = logging.getLogger(__name__)

LOOK_AHEAD_REQUESTS = 16
"""How many queued requests count towards the memory that is short."""

DECODE_STEP_TOKENS = 4
"""Slots that a running request is sure to find at its next step."""

GROWTH_TOKENS = 64
"""Decode growth counted for each running request."""


class Planner:
    """Owns the rank's agent table, its residents and both executors.

    Args:
        pool_tokens: size of the KV pool, in tokens.
        kv_bytes_per_token: on this rank, all layers.
        writes_log: whether this rank writes the decision log file (one per group does).
    """

    def __init__(
        self,
        config: TokencakeConfig,
        cache: TokencakeCache,
        *,
        pool_tokens: int,
        kv_bytes_per_token: int,
        writes_log: bool,
        temporal_policy: TemporalPolicy | None = None,
    ) -> None:
        self.config = config
        self.cache = cache
        self.pool_tokens = pool_tokens
        self.table = AgentTable(
            call_timeout_s=config.call_timeout_s, agent_timeout_s=config.agent_timeout_s
        )
        self.log = DecisionLog(config.decision_log if writes_log else None)
        self.residents: dict[AgentKey, Resident] = {}
        self.now_s = 0.0
        self.sequence = 0
        self.resets = 0
        self.left_waiting = False
        """Whether the last admission left requests waiting: then memory has a price."""
        policy = temporal_policy or FarthestReturnFirst(
            link_tokens_per_s=config.link_bytes_per_s / kv_bytes_per_token,
            lead_s=config.upload_lead_s,
        )
        self.temporal = TemporalExecutor(
            config,
            cache,
            policy,
            self.residents,
            self.log,
            hold_budget_tokens=int(config.hold_max * pool_tokens),
            host_budget_tokens=int(
                config.host_hold_max * cache.cache_controller.mem_pool_host.size
            ),
        )
        self.spatial = SpatialExecutor(config, cache, self.agent_of, self.log, pool_tokens)
        cache.on_turn_end = self._turn_ended
        cache.on_reset = self._cache_reset

    # -- the event log ------------------------------------------------------------------------

    def receive(self, message: TokencakeEvent) -> None:
        """Applies one entry of the log. The main process has validated it already."""
        entry = message.entry()
        self.sequence = entry.sequence
        self.now_s = max(self.now_s, entry.stamp_s)
        try:
            transitions = self.table.apply(entry.event, self.now_s)
        except AgentError:
            # The main process accepted it, so its table and this one differ: a defect, but no
            # reason to stop serving.
            logger.exception("event %d was refused here", entry.sequence)
            return
        for transition in transitions:
            self._follow(transition)

    def _follow(self, transition: Transition) -> None:
        agent, call = transition.agent, transition.call
        match transition.change:
            case Change.REQUEST_BEGAN:
                if self.config.temporal_on:
                    self.temporal.returned(agent, self.now_s)
            case Change.REQUEST_ENDED:
                self.temporal.let_go(agent, self.now_s, "request_ended")
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
        if change is Change.AGENT_FORGOTTEN:
            self.temporal.forget(agent.key)
            self.residents.pop(agent.key, None)

    def agent_of(self, req: "Req") -> Agent | None:
        """The agent that sent ``req``; None for untagged requests."""
        key = agent_key_of(req)
        return None if key is None else self.table.get(key)

    # -- what the cache reports ---------------------------------------------------------------

    def _turn_ended(self, req: "Req", leaf_id: int) -> None:
        agent = self.agent_of(req)
        if agent is None:
            return
        path = self.cache.path(leaf_id)
        if not path:
            return
        node_ids = tuple(node.id for node in path)
        tokens = sum(len(node.key) for node in path)
        resident = self.residents.get(agent.key)
        if resident is None:
            resident = self.residents[agent.key] = Resident(agent, node_ids, tokens)
        else:
            resident.node_ids, resident.tokens = node_ids, tokens
            resident.agent = agent
        if self.config.spatial_on:
            self.spatial.turn_ended(resident, self.now_s)
        if self.config.temporal_on:
            self.temporal.turn_ended(resident)

    def _cache_reset(self) -> None:
        self.resets += 1
        self.residents.clear()
        self.temporal.clear()
        self.spatial.clear()

    # -- each scheduler step ------------------------------------------------------------------

    def step(
        self, waiting_queue: "list[Req]", running: "list[Req]", chunked: "Req | None" = None
    ) -> None:
        """Runs before admission, after SGLang has reaped finished transfers.

        Args:
            chunked: the request whose prompt is being prefilled in chunks, if there is one.
        """
        if not self.residents:
            return
        self.spatial.step(self.now_s)
        committed_tokens = self._committed_tokens(running, chunked)
        self._keep_free(committed_tokens)
        if self.config.temporal_on:
            if self.left_waiting and self.cache.pin_count:
                self.temporal.drop_holds_of_queued(self.now_s)
            self.temporal.step(
                self.now_s,
                shortage_tokens=self._shortage_tokens(waiting_queue, running),
                queue_waits=self.left_waiting,
                keep_free_tokens=committed_tokens
                + GROWTH_TOKENS * (len(running) + (chunked is not None)),
            )

    def batch_admitted(self, batch: "ScheduleBatch") -> None:
        """A prefill batch was formed: make it wait for uploads it reads, and end their holds."""
        if not self.residents:
            return
        if batch.hicache_consumer_index < 0:
            batch.hicache_consumer_index = self.cache.consumer_index_for(batch.reqs)
        for req in batch.reqs:
            agent = self.agent_of(req)
            if agent is not None:
                self.temporal.admitted(agent, self.now_s, req.host_loaded_length or 0)

    def deferred(self, req: "Req") -> None:
        """Admission left the reserve to critical agents and kept ``req`` waiting."""
        tagged = self.agent_of(req) is not None
        self.log.count(Action.DEFER, "reserve_tagged" if tagged else "reserve_untagged")

    def nothing_runs(self) -> None:
        """Requests wait, nothing runs and nothing was admitted: give up one pin.

        Called every such step, so that the queue's head gets the whole pool in the end.
        """
        self._drop_one_pin("starvation")

    def _committed_tokens(self, running: "list[Req]", chunked: "Req | None") -> int:
        """Slots that admitted requests are about to take without asking again.

        SGLang checks a prompt's whole length when it admits the first chunk and takes later
        chunks for granted: nothing of ours may lock that memory in between. For decoding, two
        steps' worth, because under overlap scheduling the next step is under way.
        """
        tokens = 2 * len(running) * max(self.cache.page_size, DECODE_STEP_TOKENS)
        if chunked is not None:
            rest = len(chunked.full_untruncated_fill_ids) - chunked.extend_end
            tokens += max(0, rest) + self.cache.page_size
        return tokens

    def _keep_free(self, tokens: int) -> None:
        """Drops pins until ``tokens`` slots are free or evictable, or no pin is left."""
        allocator = self.cache.token_to_kv_pool_allocator
        while allocator.available_size() + self.cache.full_evictable_size() < tokens:
            if not self._drop_one_pin("headroom"):
                return

    def _drop_one_pin(self, reason: str) -> bool:
        return self.temporal.drop_one_hold(self.now_s, reason) or self.spatial.drop_one_pin(
            self.now_s, reason
        )

    def _shortage_tokens(self, waiting_queue: "list[Req]", running: "list[Req]") -> int:
        """How many more slots the next admissions and decode steps need than are free."""
        if not waiting_queue:
            return 0
        needed = GROWTH_TOKENS * len(running)
        for req in waiting_queue[:LOOK_AHEAD_REQUESTS]:
            tokens = len(req.origin_input_ids) + len(req.output_ids)
            agent = self.agent_of(req)
            resident = self.residents.get(agent.key) if agent is not None else None
            if resident is not None:
                tokens -= min(tokens, self.cache.tokens_by_tier(resident.leaf_id)[0])
            needed += tokens + min(GROWTH_TOKENS, req.sampling_params.max_new_tokens)
        return max(0, needed - self.cache.token_to_kv_pool_allocator.available_size())

    # -- for status ---------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        states: dict[str, int] = {}
        for agent in self.table:
            states[agent.state] = states.get(agent.state, 0) + 1
        return {
            "now_s": self.now_s,
            "sequence": self.sequence,
            "pool_tokens": self.pool_tokens,
            "available_tokens": self.cache.token_to_kv_pool_allocator.available_size(),
            "evictable_tokens": self.cache.full_evictable_size(),
            "protected_tokens": self.cache.full_protected_size(),
            "host_tokens": self.cache.cache_controller.mem_pool_host.size,
            "host_available_tokens": self.cache.cache_controller.mem_pool_host.available_size(),
            "agents": states,
            "residents": len(self.residents),
            "resets": self.resets,
            "temporal": self.temporal.snapshot(),
            "spatial": self.spatial.snapshot(),
            "decisions": self.log.snapshot(),
        }
