"""What every rank's planner does, whatever its policy: replays the event log and knows the agents.

It reads no clock and decides from the log and the tree only, so every rank of a tensor- or
pipeline-parallel group does the same at the same step.
"""

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from tokencake_sglang.agents.errors import AgentError
from tokencake_sglang.agents.events import ApplicationStart, DurationsKnown
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, AgentTable, Transition
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.messages import TokencakeEvent
from tokencake_sglang.engine.request_tag import agent_key_of
from tokencake_sglang.engine.residents import Resident
from tokencake_sglang.observability.decisions import DecisionLog

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder

    from tokencake_sglang.temporal.duration import DurationModel

logger = logging.getLogger(__name__)

DECODE_STEP_TOKENS = 4
"""Slots that a running request is sure to find at its next step."""


class RankPlanner(ABC):
    """Owns the rank's agent table and its residents: agents that have KV in the tree.

    Args:
        pool_tokens: size of the KV pool, in tokens.
        kv_bytes_per_token: on this rank, all layers.
        writes_log: whether this rank writes the decision log file (one per group does).
        by_priority: whether requests have priorities, and SGLang preempts for them.
        decodes_beside_prompt: tokens that a running request gets at most while one prompt is
            prefilled in chunks.
        aligns_chunks: whether chunks must end where SGLang ends them, so that a prompt's KV is the
            same whoever runs beside it (deterministic inference).
    """

    def __init__(
        self,
        config: TokencakeConfig,
        cache: TokencakeCache,
        *,
        pool_tokens: int,
        kv_bytes_per_token: int,
        writes_log: bool,
        by_priority: bool = False,
        decodes_beside_prompt: int = 0,
        aligns_chunks: bool = False,
    ) -> None:
        self.config = config
        self.cache = cache
        self.pool_tokens = pool_tokens
        self.kv_bytes_per_token = kv_bytes_per_token
        self.by_priority = by_priority
        self.decodes_beside_prompt = decodes_beside_prompt
        self.aligns_chunks = aligns_chunks
        self.table = AgentTable(
            call_timeout_s=config.call_timeout_s, agent_timeout_s=config.agent_timeout_s
        )
        self.log = DecisionLog(config.decision_log if writes_log else None)
        self.residents: dict[AgentKey, Resident] = {}
        self.agents_by_leaf: dict[int, tuple[AgentKey, ...]] = {}
        self.now_s = 0.0
        self.sequence = 0
        self.resets = 0
        self.found_memory_full = False
        """Whether admission passed over a request that did not fit."""
        self.left_waiting_requests = 0
        """How many requests the last admission left waiting."""
        self.left_awaiting_storage = 0
        """How many of those SGLang kept waiting for a read from storage."""
        self._left_room_tokens = 0
        cache.on_turn_end = self._turn_ended
        cache.on_reset = self._cache_reset

    @property
    def left_waiting(self) -> bool:
        """Whether the last admission left requests waiting: then memory has a price."""
        return self.left_waiting_requests > self.left_awaiting_storage

    # -- the event log ------------------------------------------------------------------------

    def receive(self, message: TokencakeEvent) -> None:
        """Applies one entry of the log. The main process has validated it already."""
        entry = message.entry()
        self.sequence = entry.sequence
        self.now_s = max(self.now_s, entry.stamp_s)
        if isinstance(entry.event, DurationsKnown):
            self._receive_durations(entry.event.state)
            return
        try:
            transitions = self.table.apply(entry.event, self.now_s)
        except AgentError:
            # The main process accepted it, so its table and this one differ: a defect, but no
            # reason to stop serving.
            logger.exception("event %d was refused here", entry.sequence)
            return
        for transition in transitions:
            self.follow(transition)
        if isinstance(entry.event, ApplicationStart):
            self.application_declared(entry.event.application)

    def _receive_durations(self, state: bytes) -> None:
        from tokencake_sglang.temporal.duration import DurationModel

        try:
            durations = DurationModel.from_bytes(state)
        except ValueError:
            # The main process made these bytes; without them this rank learns anew.
            logger.exception("what earlier runs learnt of calls' lengths cannot be read here")
            return
        self.durations_known(durations)

    def agent_of(self, req: "Req") -> Agent | None:
        """The agent that sent ``req``; None for untagged requests."""
        key = agent_key_of(req)
        return None if key is None else self.table.get(key)

    # -- what a planner makes of it -----------------------------------------------------------

    def durations_known(self, durations: "DurationModel") -> None:  # noqa: B027 - not all learn
        """What earlier runs of the server learnt of calls' lengths.

        Called at most once, before any agent is known. The model is the planner's own from then on:
        it is to learn from the transitions that follow, as the main process does, and is never
        stored from here.
        """

    def application_declared(self, application: str) -> None:  # noqa: B027 - not all care
        """The application said something of itself, maybe not for the first time."""

    @abstractmethod
    def follow(self, transition: Transition) -> None:
        """One consequence of an event."""

    @abstractmethod
    def turn_ended(self, resident: Resident, req: "Req") -> None:
        """A new turn's KV is in the tree."""

    @abstractmethod
    def cleared(self) -> None:
        """The tree was reset: nothing is anywhere any more."""

    @abstractmethod
    def step(
        self, waiting_queue: "list[Req]", running: "list[Req]", chunked: "Req | None" = None
    ) -> None:
        """Runs before admission, after SGLang has reaped finished transfers.

        Args:
            chunked: the request whose prompt is being prefilled in chunks, if there is one.
        """

    @abstractmethod
    def reopens_admission(self, waiting_queue: "list[Req]") -> bool:
        """Whether to try admission again, once the last attempt has found the memory full, as soon
        as anything has changed.

        SGLang tries again only when a running request has ended. But what has come since may go
        first or find its prefix in use; and the KV of a request that has ended stays locked until
        its copy to the host is done, which is after that one attempt.
        """

    @abstractmethod
    def order(self, waiting_queue: "list[Req]") -> None:
        """Sorts the queue in place, after SGLang's own policy has."""

    @abstractmethod
    def adder_class(self, base: "type[PrefillAdder]") -> "type[PrefillAdder] | None":
        """Admission of its own on top of ``base``, or None."""

    @abstractmethod
    def batch_admitted(self, batch: "ScheduleBatch") -> None:
        """A prefill batch was formed. Every planner begins with ``await_upload``."""

    @abstractmethod
    def drop_one_pin(self, reason: str) -> bool:
        """Gives up one pin; False when there is none."""

    @abstractmethod
    def snapshot_of_policy(self) -> dict[str, Any]:
        """What the planner's own part adds to ``snapshot``."""

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
            self._unclaim(resident)
            resident.node_ids, resident.tokens = node_ids, tokens
            resident.agent = agent
        self._claim(resident)
        self.turn_ended(resident, req)

    def retarget(self, resident: Resident, leaf_id: int) -> None:
        """The agent's path in the tree ends elsewhere: it was cut, or has been put back. The root is
        the end of a path of nothing."""
        self._unclaim(resident)
        path = self.cache.path(leaf_id)
        resident.node_ids = tuple(node.id for node in path) or (leaf_id,)
        self._claim(resident)

    def forget(self, key: AgentKey) -> None:
        """The agent is known no more, and its KV is nobody's."""
        if (resident := self.residents.pop(key, None)) is not None:
            self._unclaim(resident)

    def _claim(self, resident: Resident) -> None:
        leaf_id = resident.leaf_id
        # Nearly always one agent, and then a tuple is half as large as a list.
        self.agents_by_leaf[leaf_id] = (
            *self.agents_by_leaf.get(leaf_id, ()),
            resident.agent.key,
        )

    def _unclaim(self, resident: Resident) -> None:
        leaf_id, key = resident.leaf_id, resident.agent.key
        if keys := tuple(other for other in self.agents_by_leaf[leaf_id] if other != key):
            self.agents_by_leaf[leaf_id] = keys
        else:
            del self.agents_by_leaf[leaf_id]

    def _cache_reset(self) -> None:
        self.resets += 1
        self.residents.clear()
        self.agents_by_leaf.clear()
        self.cleared()

    # -- admission ----------------------------------------------------------------------------

    def admission_over(self, waiting_queue: "list[Req]") -> None:
        """Remembers what the last attempt left, so that a change is seen."""
        self.left_waiting_requests = len(waiting_queue)
        self.left_awaiting_storage = self.cache.await_storage(waiting_queue)
        if waiting_queue:  # else whoever comes is a change
            self._left_room_tokens = self._room_tokens()

    def closes_admission(self, *, admitted: bool) -> bool:
        """Whether another attempt is pointless until something changes; asked after each one.

        SGLang closes it for a request that does not fit. Every attempt matches waiting prompts.

        Args:
            admitted: whether the attempt formed a batch.
        """
        memory_full, self.found_memory_full = self.found_memory_full, False
        return memory_full

    def has_changed(self, waiting_queue: "list[Req]") -> bool:
        """Whether a request has come, memory has become free or evictable, or a read from storage
        that a request waited for has ended, since then."""
        return bool(waiting_queue) and (
            len(waiting_queue) > self.left_waiting_requests
            or self._room_tokens() > self._left_room_tokens
            or self.cache.await_storage(waiting_queue) < self.left_awaiting_storage
        )

    def _room_tokens(self) -> int:
        allocator = self.cache.token_to_kv_pool_allocator
        return allocator.available_size() + self.cache.full_evictable_size()

    # -- rules that keep a server alive -------------------------------------------------------

    def await_upload(self, batch: "ScheduleBatch") -> None:
        """Makes a prefill batch wait for an upload that it reads."""
        if batch.hicache_consumer_index < 0:
            batch.hicache_consumer_index = self.cache.consumer_index_for(batch.reqs)

    def nothing_runs(self) -> None:
        """Requests wait, nothing runs and nothing was admitted: give up one pin.

        Called every such step, so that the queue's head gets the whole pool in the end.
        """
        self.drop_one_pin("starvation")

    def committed_tokens(self, running: "list[Req]", chunked: "Req | None") -> int:
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

    def keep_free(self, tokens: int) -> None:
        """Drops pins until ``tokens`` slots are free or evictable, or no pin is left."""
        allocator = self.cache.token_to_kv_pool_allocator
        while allocator.available_size() + self.cache.full_evictable_size() < tokens:
            if not self.drop_one_pin("headroom"):
                return

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
            **self.snapshot_of_policy(),
            "decisions": self.log.snapshot(),
        }
