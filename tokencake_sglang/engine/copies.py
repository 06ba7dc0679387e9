"""What a host tier that cannot hold everything has copies of.

While it has free slots, whatever is written is copied at once, as SGLang does. Once it is full that
would make it a mirror of the device: HiCache never drops a copy of what the device has as well, and
pays for each new one with KV that is on the host alone. From then on only what the device may evict
is copied, and running requests' KV, which it may not, gives up its copies: so that both tiers
together hold what is used soonest.
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.unified_cache.components.base import BASE_COMPONENT_TYPE

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.next_use import NextUseEviction
from tokencake_sglang.observability.decisions import Action, DecisionLog
from tokencake_sglang.temporal.next_use import NEVER_S

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


class Copies:
    """Copies what the device may evict to a host tier that is full.

    Follows from the event log and the tree alone, like all that moves KV: equal on all ranks.
    """

    def __init__(self, cache: TokencakeCache, eviction: NextUseEviction, log: DecisionLog) -> None:
        self.cache = cache
        self.eviction = eviction
        self.log = log
        self.due = False
        """Whether ``step`` has something to look for."""
        self._lacking = False  # whether the last look left something without a copy
        # Leaves that are on the host alone, used last first, unless they may have changed.
        self._host_alone: list[tuple[float, UnifiedTreeNode]] | None = None

    @property
    def on(self) -> bool:
        """Not with storage below the host: what is not copied would never reach it."""
        return not self.cache.enable_storage

    def are_made_at_once(self, tokens: int) -> bool:
        """Whether so many tokens are copied now, into slots that are free or of the dead; else
        ``step`` copies them when they may be evicted."""
        if not self.on or self._free_tokens() >= tokens:
            return True
        dead = self.eviction.dead(self.cache.tree_core.evictable_host_leaves)
        if self._free_tokens() + sum(map(_tokens_with, dead)) >= tokens:
            return True
        self.due = True
        return False

    def moved(self) -> None:
        """The device has given up something or begun to run it: either may make room on the host."""
        self.due = self.due or self._lacking

    def step(self, now_s: float, keep_free_tokens: int) -> None:
        """Once a scheduler step. Copies what may be evicted, farthest from its use first.

        Room for a copy is made of those whose KV is locked on the device, then of KV that is on the
        host alone and used even later; else there is none.

        Args:
            keep_free_tokens: slots that a copy, which locks its path until it is done, must leave
                free or evictable.
        """
        if not self.due or not self.on or self.cache.ongoing_write_through:
            return
        self.due = self._lacking = False
        spare = self._spare()
        self._host_alone = None
        for next_use_s, node in self._uncopied():
            if next_use_s == NEVER_S:
                continue
            tokens = self.cache.uncopied_tokens(node.id)
            if not self.cache.leaves_room(node.id, keep_free_tokens):
                self._lacking = True
                continue
            self._make_room(tokens, spare, now_s)
            if not self._has_room(tokens, after_s=next_use_s) or not self.cache.insure(node.id):
                self._lacking = True
                continue
            self._host_alone = None  # some of it may have made room
            for key in self.eviction.claims(node):
                self.log.record(now_s, key, Action.INSURE, "may_be_evicted", tokens)
        # What is still being loaded may be locked, but its copy is read.
        self.due = self._lacking and bool(self.cache.ongoing_load_back)

    def _free_tokens(self) -> int:
        return self.cache.cache_controller.mem_pool_host.available_size()

    def _has_room(self, tokens: int, *, after_s: float) -> bool:
        """Whether ``tokens`` fit once that is gone which is on the host alone and used no sooner
        than in ``after_s``."""
        room = self._free_tokens()
        if room >= tokens:
            return True
        if self._host_alone is None:
            self._host_alone = self._find_host_alone()
        for next_use_s, leaf in self._host_alone:
            if next_use_s < after_s:
                return False
            room += _tokens_with(leaf)
            if room >= tokens:
                return True
        return False

    def _find_host_alone(self) -> "list[tuple[float, UnifiedTreeNode]]":
        """Each leaf that is on the host alone, after the seconds to its next use; what is used last
        comes first."""
        seconds_to_next_use = self.eviction.seconds_to_next_use
        found = [
            (seconds_to_next_use(leaf), leaf) for leaf in self.cache.tree_core.evictable_host_leaves
        ]
        found.sort(key=itemgetter(0), reverse=True)
        return found

    def _uncopied(self) -> "Iterator[tuple[float, UnifiedTreeNode]]":
        """What the device may evict and the host lacks, in the device's order, each with the
        seconds to its next use. Each is to be copied, or not, before the next is asked for.

        As SGLang's eviction goes: leaves by rank, and a node once all below it have gone. What is
        above a copy has one.
        """
        leaves = self.cache.tree_core.evictable_device_leaves
        heap = [self._ranked(leaf) for leaf in leaves if not leaf.backuped]
        heapq.heapify(heap)
        gone: set[int] = set()
        while heap:
            (negated_s, _), _, node = heapq.heappop(heap)
            yield -negated_s, node
            gone.add(node.id)
            above = node.parent
            if (
                not above.backuped
                and above.parent is not None
                and not _is_locked(above)
                and all(child.evicted or child.id in gone for child in above.children.values())
            ):
                heapq.heappush(heap, self._ranked(above))

    def _ranked(
        self, node: "UnifiedTreeNode"
    ) -> "tuple[tuple[float, float], int, UnifiedTreeNode]":
        return self.eviction.get_priority(node), node.id, node

    def _spare(self) -> "Iterator[UnifiedTreeNode]":
        """What is locked on the device and has a copy: what is used soonest first, a path's end
        before the rest. Each one's copy is to be dropped before the next is asked for."""
        cache, seconds_to_next_use = self.cache, self.eviction.seconds_to_next_use
        heap = [
            (seconds_to_next_use(node), node.id, node)
            for node in cache.on_both_tiers()
            # Of all there is only what runs is locked: asked first, and here, as it is asked of all.
            if node.component_data[BASE_COMPONENT_TYPE].lock_ref > 0
            and cache.can_drop_copy(node.id)
        ]
        heapq.heapify(heap)
        while heap:
            *_, node = heapq.heappop(heap)
            # Asked anew: what is below it may have been copied since.
            if not cache.can_drop_copy(node.id):
                continue
            yield node
            above = node.parent  # locked as well
            if cache.can_drop_copy(above.id):
                heapq.heappush(heap, (seconds_to_next_use(above), above.id, above))

    def _make_room(self, tokens: int, spare: "Iterator[UnifiedTreeNode]", now_s: float) -> None:
        """Drops copies that are spare until ``tokens`` fit, as far as there are any."""
        dropped: Counter[AgentKey] = Counter()
        while self._free_tokens() < tokens and (node := next(spare, None)) is not None:
            freed = self.cache.drop_copy(node.id)
            dropped.update(dict.fromkeys(self.eviction.claims(node), freed))
        for key, freed in dropped.items():
            self.log.record(now_s, key, Action.DROP, "locked_on_device", freed)


def _tokens_with(leaf: "UnifiedTreeNode") -> int:
    """Tokens of a path's end that is on the host alone: what goes once the leaf has to."""
    tokens, node = 0, leaf
    while node.parent is not None and node.evicted and len(node.children) <= 1:
        tokens += len(node.key)
        node = node.parent
    return tokens


def _is_locked(node: "UnifiedTreeNode") -> bool:
    return node.component_data[BASE_COMPONENT_TYPE].lock_ref > 0
