"""Whether what was just written is worth its place in a host tier that is full."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tokencake_sglang.engine.cache import TokencakeCache

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

KEPT_S = 30.0
"""A copy that is used within so long is not given up for one of KV that the device has as well."""


def has_room_for_copy(
    cache: TokencakeCache,
    tokens: int,
    seconds_to_next_use: "Callable[[UnifiedTreeNode], float]",
) -> bool:
    """Whether the host can take ``tokens`` at the price of copies that are used late or never.

    SGLang evicts from the host only what is there alone: with a host tier not much larger than the
    pool, copies of what runs would drive out everything that the host could ever give back. Looks
    at each leaf that SGLang might evict, as its eviction itself does, and counts what would go with
    it; changes nothing.
    """
    room = cache.cache_controller.mem_pool_host.available_size()
    if room >= tokens:
        return True
    for leaf in cache.tree_core.evictable_host_leaves:
        if seconds_to_next_use(leaf) < KEPT_S:
            continue
        node = leaf
        while node.parent is not None and node.evicted and len(node.children) <= 1:
            room += len(node.key)
            node = node.parent
        if room >= tokens:
            return True
    return False
