"""Eviction by seconds to the next use, on SGLang's own eviction drivers and on both tiers."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.evict_policy import EvictionStrategy
from sglang.srt.mem_cache.unified_cache.components.base import get_and_increase_time_counter

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.engine.residents import Resident
from tokencake_sglang.temporal.next_use import NEVER_S, AccessClock, seconds_to_next_use

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

SUPERSEDED_KEPT = 4096


class NextUseEviction(EvictionStrategy):
    """SGLang evicts the smallest rank first: the node whose next use is farthest away.

    A node is used next by the soonest of the agents whose path ends at or below it. Nodes that no
    living agent claims go by the time since they were used, so that without tags the order is LRU, and
    agents compete with other requests in one unit, seconds.

    Only the Python tree core takes strategies of this kind.
    """

    def __init__(
        self,
        residents: Mapping[AgentKey, Resident],
        agents_by_leaf: Mapping[int, tuple[AgentKey, ...]],
    ) -> None:
        self.residents = residents
        self.agents_by_leaf = agents_by_leaf
        self.now_s = 0.0
        self._superseded: dict[int, float] = {}  # node's id -> its last access then
        self._clock = AccessClock()

    def tell(self, now_s: float) -> None:
        """Once a step, before anything is evicted in it."""
        if now_s > self.now_s:
            self.now_s = now_s
            self._clock.tell(get_and_increase_time_counter(), now_s)

    def supersede(self, nodes: "Iterable[UnifiedTreeNode]") -> None:
        """An agent has left these behind, for a new path or for good: nobody needs them, unless
        they are used again. The oldest of more than ``SUPERSEDED_KEPT`` go by their age again."""
        for node in nodes:
            self._superseded.pop(node.id, None)
            self._superseded[node.id] = node.last_access_time
        while len(self._superseded) > SUPERSEDED_KEPT:
            del self._superseded[next(iter(self._superseded))]

    def dead(self, nodes: "Iterable[UnifiedTreeNode]") -> "Iterator[UnifiedTreeNode]":
        """Those of ``nodes`` that nobody will use."""
        for node in nodes:
            if node.id in self._superseded and self.seconds_to_next_use(node) == NEVER_S:
                yield node

    def get_priority(self, node: "UnifiedTreeNode") -> tuple[float, float]:
        if not self.agents_by_leaf and not self._superseded:
            return (0.0, node.last_access_time)  # the same order, for nothing
        return (-self.seconds_to_next_use(node), node.last_access_time)

    def seconds_to_next_use(self, node: "UnifiedTreeNode") -> float:
        # Of every leaf that SGLang could evict, each time that it makes room: no walk, no list.
        keys = self.claims(node) if node.children else self.agents_by_leaf.get(node.id, ())
        soonest_s: float | None = None
        for key in keys:
            resident = self.residents[key]
            agent = resident.agent
            if agent.finished:
                continue
            next_use_s = seconds_to_next_use(
                self.now_s,
                has_request=bool(agent.rids),
                expected=resident.expected,
                last_event_s=agent.last_event_s,
            )
            if soonest_s is None or next_use_s < soonest_s:
                soonest_s = next_use_s
        if soonest_s is not None:
            return soonest_s
        if node.last_access_time <= self._superseded.get(node.id, -1.0):
            return NEVER_S
        return self._clock.age_s(node.last_access_time, self.now_s)

    def claims(self, node: "UnifiedTreeNode") -> Iterator[AgentKey]:
        """Agents whose path ends at or below ``node``."""
        stack = [node]
        while stack:
            below = stack.pop()
            yield from self.agents_by_leaf.get(below.id, ())
            stack.extend(below.children.values())
