"""Eviction in a policy's order, on SGLang's own eviction drivers."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.evict_policy import EvictionStrategy

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.policy import EvictionCandidate, Policy

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


class PolicyEviction(EvictionStrategy):
    """Asks the policy for the rank of every node that may go; SGLang evicts the smallest first.

    Only the Python tree core takes strategies of this kind. An agent claims the nodes of its path:
    a leaf keeps its id when SGLang splits it, so whoever's leaf lies at or below a node claims it.
    """

    def __init__(self, policy: Policy, agents_by_leaf: Mapping[int, tuple[AgentKey, ...]]) -> None:
        self.policy = policy
        self.agents_by_leaf = agents_by_leaf

    def get_priority(self, node: "UnifiedTreeNode") -> tuple[float, ...]:
        depth_tokens, above = 0, node.parent
        while above is not None:
            depth_tokens += len(above.key)
            above = above.parent
        return self.policy.eviction_rank(
            EvictionCandidate(
                agents=tuple(self._claims(node)),
                tokens=len(node.key),
                depth_tokens=depth_tokens,
                last_access=node.last_access_time,
                on_host=node.backuped,
                on_device=not node.evicted,
            )
        )

    def _claims(self, node: "UnifiedTreeNode") -> Iterator[AgentKey]:
        stack = [node]
        while stack:
            below = stack.pop()
            yield from self.agents_by_leaf.get(below.id, ())
            stack.extend(below.children.values())
