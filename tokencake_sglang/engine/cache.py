"""The cache: SGLang's UnifiedRadixCache with verbs for moving one agent's path between tiers.

Every verb is a no-op on what it must not touch: a locked node, a node shared with somebody on the
device, a node whose host copy is missing or still on its way.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.registry import (
    TreeCacheBuildContext,
    create_unified_radix_cache,
    default_radix_cache_factory,
)
from sglang.srt.mem_cache.unified_cache.cache_action import BackupKV
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode
from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import DriveHostEvictionResult
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from tokencake_sglang.engine.load_fence import SET_ASIDE_SHARE

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from tokencake_sglang.engine.load_fence import LoadFence

BACKEND_NAME = "tokencake"


def create_tokencake_cache(ctx: TreeCacheBuildContext) -> UnifiedRadixCache:
    """The factory behind ``--radix-cache-backend tokencake``."""
    if ctx.disable_radix_cache:
        return default_radix_cache_factory(ctx)
    # The Rust core hides its nodes and turns a failed precondition into a dead scheduler. The
    # Python core costs 11 to 18 % more of the scheduler's own time (docs/design.md, "Tree core").
    ctx.params.tree_core_backend = "python"
    return create_unified_radix_cache(ctx, cache_class=TokencakeCache)


class TokencakeCache(UnifiedRadixCache):
    """UnifiedRadixCache plus insure, release, upload and pin on root-to-leaf paths.

    A path is named by its leaf's node id: when SGLang splits a node the suffix keeps the id, so
    the id of a leaf stays good until the leaf is deleted.
    """

    prefetch_stop_policy: str

    def __init__(self, params) -> None:
        # reset() runs inside super().__init__, before anything below it could be set.
        self.on_turn_end: Callable[[Req, int], None] | None = None
        self.on_evict: Callable[[UnifiedTreeNode], None] | None = None
        self.on_remove: Callable[[UnifiedTreeNode], None] | None = None
        self.may_copy: Callable[[int], bool] | None = None
        """Asked before SGLang copies to the host so many tokens that were just written."""
        self.on_reset: Callable[[], None] | None = None
        self.load_fence: LoadFence | None = None
        """Knows which loads need not wait for the forward under way; None if all are to."""
        self._upload: tuple[int, int] | None = None  # (anchor's id, first token loaded)
        self._pins: dict[object, int] = {}  # holder -> leaf id
        super().__init__(params)
        self._report_removals()

    # -- seams into SGLang --------------------------------------------------------------------

    def reset(self) -> None:
        self._upload = None
        self._pins.clear()
        super().reset()
        if self.on_reset is not None:
            self.on_reset()

    def checkpoint_into_tree(self, req: "Req", *, up_to: int, **kwargs) -> None:
        super().checkpoint_into_tree(req, up_to=up_to, **kwargs)
        if self.load_fence is not None and req.lock is not None:
            self.load_fence.stored(node.id for node in self._ascent(req.lock.node))
        if req.finished() and req.lock is not None and self.on_turn_end is not None:
            self.on_turn_end(req, req.lock.node)

    def _evict_device_leaf(self, node_id, tracker):
        if self.on_evict is not None:
            self.on_evict(self.tree_core.node_by_id(node_id))
        if self.load_fence is None:
            return super()._evict_device_leaf(node_id, tracker)
        with self.load_fence.evicting(node_id):
            return super()._evict_device_leaf(node_id, tracker)

    def _apply_cache_action(self, action) -> None:
        if isinstance(action, BackupKV) and self.may_copy is not None:
            chain = (self.tree_core.node_by_id(node_id) for node_id in action.node_ids)
            if not self.may_copy(sum(len(node.key) for node in chain if not node.backuped)):
                return  # as when the host has no room; ``insure`` may copy it later
        super()._apply_cache_action(action)

    def _report_removals(self) -> None:
        """The tree core takes nodes out in one place; what it forgets, storage may still have."""
        remove = self.tree_core._remove_leaf_from_parent

        def reporting_remove(node: UnifiedTreeNode) -> None:
            if self.on_remove is not None:
                self.on_remove(node)
            remove(node)

        self.tree_core._remove_leaf_from_parent = reporting_remove

    def load_back(self, node_id, mem_quota=None, req=None) -> bool:
        fence = self.load_fence
        if fence is None:
            return super().load_back(node_id, mem_quota, req)
        with fence.loading(set_aside=self._can_set_aside(fence.unsafe_tokens, node_id)):
            return super().load_back(node_id, mem_quota, req)

    def _can_set_aside(self, tokens: int, node_id: int) -> bool:
        """Whether a load can do without so many of the free slots, for little that it evicts."""
        load_tokens = self.host_only_tokens(node_id) if tokens else 0
        if not 0 < tokens <= SET_ASIDE_SHARE * load_tokens:
            return False
        return self.leaves_room(node_id, tokens + load_tokens)

    def ready_to_load_host_cache(self) -> int:
        """Starts queued loads, without a fence if none of them needs one; first makes sure that the
        event slot they will use is free.

        The layer counter has three slots and asserts that the next one is done. An upload of ours
        may hold one while SGLang's own two are in use, so wait for it here: a wait on this rank
        alone, which changes no decision.
        """
        controller = self.cache_controller
        if controller is None or not controller.load_queue:
            return super().ready_to_load_host_cache()
        counter = controller.layer_done_counter
        next_event = counter.events[(counter.producer_index + 1) % counter.num_counters]
        if not next_event.finish_event.query():
            next_event.finish_event.synchronize()
        if self.load_fence is None or self.load_fence.needed():
            return super().ready_to_load_host_cache()
        stream, controller.load_fence_stream = controller.load_fence_stream, None
        try:
            return super().ready_to_load_host_cache()
        finally:
            controller.load_fence_stream = stream

    # -- paths --------------------------------------------------------------------------------

    def path(self, leaf_id: int) -> list[UnifiedTreeNode]:
        """The nodes from below the root to the leaf; empty when the leaf is gone."""
        nodes = list(self._ascent(leaf_id))
        nodes.reverse()
        return nodes

    def _ascent(self, leaf_id: int) -> Iterator[UnifiedTreeNode]:
        """The path's nodes from the leaf up."""
        try:
            node = self.tree_core.node_by_id(leaf_id)
        except KeyError:
            return
        while node.parent is not None:
            yield node
            node = node.parent

    def deepest_survivor(self, leaf_ids: Sequence[int]) -> int | None:
        """The last of ``leaf_ids`` (root first) that is still in the tree."""
        for node_id in reversed(leaf_ids):
            try:
                self.tree_core.node_by_id(node_id)
            except KeyError:
                continue
            return node_id
        return None

    def _releasable(self, leaf_id: int) -> list[UnifiedTreeNode]:
        """Device nodes from the leaf up whose slots can go: nothing is lost, nobody disturbed.

        The walk ends at the first node that must stay: one without a finished host copy (it would
        be deleted), one that is locked, or one that another path holds on the device.
        """
        return list(itertools.takewhile(lambda node: node.backuped, self._discardable(leaf_id)))

    def releasable_tokens(self, leaf_id: int) -> int:
        """How many device tokens ``release`` would free now."""
        return sum(len(node.key) for node in self._releasable(leaf_id))

    def deepest_on_device(self, leaf_id: int) -> int | None:
        """The last node of the path's unbroken run of device nodes."""
        deepest = None
        for node in self.path(leaf_id):
            if node.evicted:
                break
            deepest = node.id
        return deepest

    def tokens_by_tier(self, leaf_id: int) -> tuple[int, int]:
        """The path's tokens on the device, and those that are on the host only."""
        device = host = 0
        for node in self.path(leaf_id):
            if node.evicted:
                host += len(node.key)
            else:
                device += len(node.key)
        return device, host

    def host_only_tokens(self, leaf_id: int) -> int:
        """The path's tokens that are on the host only: those of its end, for a path leaves the
        device from the leaf up and comes back from the root down."""
        evicted = itertools.takewhile(lambda node: node.evicted, self._ascent(leaf_id))
        return sum(len(node.key) for node in evicted)

    def unlocked_tokens(self, leaf_id: int) -> int:
        """The path's device tokens that nobody has locked."""
        return sum(
            len(node.key)
            for node in self.path(leaf_id)
            if not node.evicted and all(data.lock_ref == 0 for data in node.component_data)
        )

    def together_tokens(self, leaf_ids: Iterable[int]) -> int:
        """Tokens of several paths, on either tier, shared prefixes once."""
        seen: set[int] = set()
        tokens = 0
        for leaf_id in leaf_ids:
            for node in self._ascent(leaf_id):
                if node.id in seen:
                    break  # and so is what is above it
                seen.add(node.id)
                tokens += len(node.key)
        return tokens

    def uncopied_tokens(self, leaf_id: int) -> int:
        """The path's tokens that have no host copy, finished or under way."""
        return sum(len(node.key) for node in self.path(leaf_id) if not node.backuped)

    # -- insure -------------------------------------------------------------------------------

    def leaves_room(self, leaf_id: int, tokens: int) -> bool:
        """Whether ``tokens`` slots would stay free or evictable if the path were locked."""
        room = self.token_to_kv_pool_allocator.available_size() + self.full_evictable_size()
        return room - self.unlocked_tokens(leaf_id) >= tokens

    def insure(self, leaf_id: int) -> int | None:
        """Queues host copies of the path's unbacked nodes (asynchronous, parents first).

        Returns the tokens queued, or None when the host tier had no room for all of them.
        """
        unbacked = [node for node in self.path(leaf_id) if not node.backuped and not node.evicted]
        if not unbacked:
            return 0
        tokens = sum(len(node.key) for node in unbacked)
        action = self.tree_core.build_backup_kv_action(unbacked[-1].id)
        written = self._execute_and_commit_kv_backup(action)
        self.flush_pending_backups()
        return tokens if written > 0 else None

    def is_insured(self, leaf_id: int) -> bool:
        """Whether every node of the path has a finished host copy."""
        path = self.path(leaf_id)
        return bool(path) and all(
            node.backuped and node.write_through_pending_id is None for node in path
        )

    def on_both_tiers(self) -> "Iterable[UnifiedTreeNode]":
        """Nodes whose copies ``drop_copy`` may take; some may be found on one tier only."""
        return self.tree_core.full_host_duplicates.values()

    def can_drop_copy(self, node_id: int) -> bool:
        """Whether the device has the node as well, nothing reads or writes its copy, and no copy
        below needs it: SGLang takes for granted that what is above a copy has one, and locks of
        what it loads only the end."""
        node = self.tree_core.node_by_id(node_id)
        return self.tree_core._can_reclaim_full_host_duplicate(node) and not any(
            child.backuped for child in node.children.values()
        )

    def drop_copy(self, node_id: int) -> int:
        """Frees the host copy of a node that the device keeps. Returns its tokens, 0 if it must stay."""
        if not self.can_drop_copy(node_id):
            return 0
        node = self.tree_core.node_by_id(node_id)
        result = DriveHostEvictionResult()
        self.tree_core._release_full_host_duplicate(
            node,
            result.tracker,
            result.device_frees,
            result.host_frees,
            cache_actions=result.cache_actions,
        )
        self.tree_core.full_host_duplicates.pop(node.id, None)
        self._apply_eviction_result(result)
        return len(node.key)

    # -- release ------------------------------------------------------------------------------

    def release(self, leaf_id: int) -> int:
        """Gives up device slots from the leaf up, until a node that must stay. Returns tokens."""
        nodes = self._releasable(leaf_id)
        for node in nodes:
            self._evict_device_leaf(node.id, {ct: 0 for ct in self.tree_components})
        return sum(len(node.key) for node in nodes)

    # -- discard ------------------------------------------------------------------------------

    def discardable_tokens(self, leaf_id: int) -> int:
        """How many device tokens ``discard`` would free now."""
        return sum(len(node.key) for node in self._discardable(leaf_id))

    def discard(self, leaf_id: int) -> int:
        """Gives up device slots from the leaf up, copied or not, until a node that somebody else
        needs. What has no host copy is lost. Returns tokens."""
        nodes = self._discardable(leaf_id)
        for node in nodes:
            self._evict_device_leaf(node.id, {ct: 0 for ct in self.tree_components})
        return sum(len(node.key) for node in nodes)

    def _discardable(self, leaf_id: int) -> list[UnifiedTreeNode]:
        """Device nodes from the leaf up that nobody has locked, copies and no other path holds."""
        nodes: list[UnifiedTreeNode] = []
        below: UnifiedTreeNode | None = None
        for node in self._ascent(leaf_id):
            if not node.evicted:
                if (
                    node.write_through_pending_id is not None
                    or any(data.lock_ref > 0 for data in node.component_data)
                    or any(
                        not child.evicted for child in node.children.values() if child is not below
                    )
                ):
                    break
                nodes.append(node)
            below = node
        return nodes

    # -- upload -------------------------------------------------------------------------------

    def can_start_upload(self) -> bool:
        """At most one load of ours beside SGLang's two; acks are reaped alike on every rank."""
        controller = self.cache_controller
        return (
            controller is not None and not controller.load_queue and not controller.ack_load_queue
        )

    def upload(self, leaf_id: int, max_tokens: int, keep_free_tokens: int = 0) -> int:
        """Starts loading the first host-only piece of the path, parents first. Returns its tokens.

        A node longer than ``max_tokens`` is split at a page boundary. Loading may evict unlocked
        device nodes in SGLang's own order to make room, but leaves ``keep_free_tokens`` slots
        free or evictable: a load locks what it takes until its bytes are there. Returns 0 when there is nothing worth a
        load, a load is in flight, or no room.
        """
        if not self.can_start_upload():
            return 0
        path = self.path(leaf_id)
        start = 0
        missing = [node for node in path if node.evicted]
        for node in path:
            if node.evicted:
                break
            start += len(node.key)
        if not missing or not all(node.backuped for node in missing):
            return 0
        # load_back evicts first and fails afterwards: ask for nothing that cannot be had. It locks
        # the whole path, so what is evictable above the missing nodes gives no room.
        free = self.token_to_kv_pool_allocator.available_size() + self.full_evictable_size()
        free -= keep_free_tokens + self.unlocked_tokens(leaf_id)
        if free < self.page_size:
            return 0
        anchor, tokens = self._first_piece(missing, min(max_tokens, free))
        if tokens > free or not self.load_back(anchor.id):
            return 0
        self.ready_to_load_host_cache()
        self._upload = (anchor.id, start)
        return tokens

    def _first_piece(
        self, missing: list[UnifiedTreeNode], max_tokens: int
    ) -> tuple[UnifiedTreeNode, int]:
        """The deepest of the ``missing`` nodes (root first) whose path fits, and its tokens."""
        tokens = 0
        anchor = missing[0]
        for node in missing:
            if tokens + len(node.key) > max_tokens:
                break
            tokens += len(node.key)
            anchor = node
        if tokens > 0:
            return anchor, tokens
        piece = max(1, max_tokens // self.page_size) * self.page_size
        if piece >= len(anchor.key):
            return anchor, len(anchor.key)
        prefix, action = self.tree_core._split_node(anchor.key, anchor, piece)
        if action is not None:
            self._apply_cache_actions([action])
        return prefix, piece

    def is_uploading(self, leaf_id: int) -> bool:
        """Whether a load towards the leaf is in flight."""
        return any(node.id in self.ongoing_load_back for node in self.path(leaf_id))

    def consumer_index_for(self, reqs: Iterable["Req"]) -> int:
        """The load that a prefill of ``reqs`` must wait for, or -1.

        ``load_back`` publishes device slots before their bytes have arrived. SGLang makes the
        batch that asked for a load wait for it, layer by layer; a batch that merely matches what
        an upload of ours is still loading must wait as well, or it reads stale memory.
        """
        if self._upload is None:
            return -1
        anchor_id, start = self._upload
        if anchor_id not in self.ongoing_load_back:
            self._upload = None
            return -1
        in_flight = set()
        end = 0
        for node in self.path(anchor_id):
            end += len(node.key)
            if end > start:
                in_flight.add(node.id)
        for req in reqs:
            if any(node.id in in_flight for node in self.path(req.last_node)):
                return self.cache_controller.layer_done_counter.producer_index
        return -1

    # -- storage ------------------------------------------------------------------------------

    def descend(self, node_id: int, key: RadixKey) -> tuple[int, int]:
        """The deepest node below ``node_id`` whose tokens are the first of ``key``, and how many.

        Only whole nodes count. Unlike a match of SGLang's, it touches and splits nothing.
        """
        node = self.tree_core.node_by_id(node_id)
        tokens = 0
        while len(key) >= self.page_size:
            child = node.children.get(key.child_key(self.page_size))
            if child is None or child.key.match(key, page_size=self.page_size) < len(child.key):
                break
            node = child
            tokens += len(child.key)
            key = key[len(child.key) :]
        return node.id, tokens

    def end_prefetch(self, handle: CacheRequestHandle) -> None:
        """Ends a read from storage now; what all ranks have read by now goes into the tree."""
        policy = self.prefetch_stop_policy
        self.prefetch_stop_policy = "best_effort"
        try:
            self.check_prefetch_progress(handle)
        finally:
            self.prefetch_stop_policy = policy

    def await_storage(self, reqs: Iterable["Req"]) -> int:
        """How many of ``reqs`` SGLang keeps waiting for a read from storage, not for memory."""
        if not self.ongoing_prefetch:
            return 0
        return sum(self.has_ongoing_prefetch(req.cache_request_handle) for req in reqs)

    # -- pins ---------------------------------------------------------------------------------

    def pin(self, holder: object, leaf_id: int) -> bool:
        """Keeps the whole path on the device for ``holder``, in place of its earlier pin.

        Only a path that is entirely on the device can be pinned; False otherwise, and the
        earlier pin stays.
        """
        path = self.path(leaf_id)
        if not path or any(node.evicted for node in path):
            return False
        self.tree_core.inc_full_pin(leaf_id)
        self.unpin(holder)
        self._pins[holder] = leaf_id
        return True

    def unpin(self, holder: object) -> None:
        leaf_id = self._pins.pop(holder, None)
        if leaf_id is not None:
            self.tree_core.dec_full_pin(leaf_id)

    def pinned_tokens(self, holders: Iterable[object], also: int | None = None) -> int:
        """Device tokens that ``holders`` pin together, shared prefixes once; ``also`` a leaf."""
        leaves = [self._pins[holder] for holder in holders if holder in self._pins]
        return self.together_tokens(leaves if also is None else [*leaves, also])

    def is_pinned(self, holder: object) -> bool:
        return holder in self._pins

    @property
    def kv_bytes_per_token(self) -> int:
        """On this rank, all layers: what the link carries for a token."""
        return self.cache_controller.mem_pool_host.size_per_token

    @property
    def pin_count(self) -> int:
        return len(self._pins)
