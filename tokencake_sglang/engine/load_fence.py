"""Which loads have to wait for the forward under way.

With overlapped scheduling a forward may still run when its successor's loads begin, and may write
slots that have been freed since it was launched. So SGLang fences every load behind all that was
submitted (``HiCacheController.start_loading``, which says that a finer fence could be had). A load
into slots that the forward does not know needs none. Those are

- slots that were free when it was launched: it was given its own before;
- slots that eviction has taken since, from nodes which were in the tree by then: whatever they are
  read for still has them locked, or is a request that has ended, whose output nobody waits for.

Not so what requests free themselves: one that ended, was retracted or aborted may be part of the
forward, and what is freed because another wrote the same may be read by it. Nor what entered the
tree since, which is what a stashed chunk writes.

Only one forward can be under way when a load begins: SGLang processes each result before it
schedules the forward after the next. Pipelines and speculation are refused (``compat``).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Union

import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

Allocator = Union["PagedTokenToKVPoolAllocator", "TokenToKVPoolAllocator"]

SET_ASIDE_SHARE = 0.125
"""Of a load: so many unsafe slots at most are left out for it, for which others are evicted."""


class LoadFence:
    """Keeps the free pages apart: those that the forward under way may know are the last ones given
    out. Slots are counted in the allocator's pages.

    Args:
        allocator: gives its free pages out from the front, and puts back at either end. From here on
            it puts back what was evicted in front and all else behind.
    """

    def __init__(self, allocator: Allocator) -> None:
        self._allocator = allocator
        self._unsafe_pages = 0  # at the end of the allocator's list; may be given out unnoticed
        self._newest_old_node = UnifiedTreeNode.counter
        self._stored: set[int] = set()
        self._evicting = False
        self._may_hit_the_forward = False
        if isinstance(allocator, PagedTokenToKVPoolAllocator):
            allocator._release_page_ids = self._put_back
        else:
            self._free_in_group = allocator.free
            allocator.free = self._free_slots

    @classmethod
    def of(cls, scheduler: "Scheduler") -> "LoadFence | None":
        """None where SGLang's fence costs nothing, or its allocator orders its pages by itself."""
        allocator = scheduler.token_to_kv_pool_allocator
        ordered = type(allocator) in (TokenToKVPoolAllocator, PagedTokenToKVPoolAllocator)
        if not scheduler.enable_overlap or not ordered or allocator.need_sort:
            return None
        return cls(allocator)

    # -- what happens between two loads -------------------------------------------------------

    def launched(self) -> None:
        """A forward is about to be launched; it has its slots. The one before is processed before
        the next load."""
        self._unsafe_pages = 0
        self._newest_old_node = UnifiedTreeNode.counter
        self._stored.clear()

    def stored(self, node_ids: Iterable[int]) -> None:
        """A request's KV, maybe written or read by the forward under way, is in these nodes."""
        self._stored.update(node_ids)

    @contextmanager
    def evicting(self, node_id: int) -> Iterator[None]:
        """What is freed inside was the node's."""
        self._evicting = node_id < self._newest_old_node and node_id not in self._stored
        try:
            yield
        finally:
            self._evicting = False

    # -- loads --------------------------------------------------------------------------------

    @property
    def unsafe_tokens(self) -> int:
        """Of the free slots, those that the forward under way may know."""
        self._notice_given_out()
        return self._unsafe_pages * self._allocator.page_size

    @contextmanager
    def loading(self, *, set_aside: bool) -> Iterator[None]:
        """A load takes its slots inside.

        Args:
            set_aside: leave out unsafe ones, as if they were not free.
        """
        self._notice_given_out()
        aside_pages = self._unsafe_pages if set_aside else 0
        if aside_pages:
            free_pages = self._allocator.free_pages
            aside = free_pages[-aside_pages:]
            self._allocator.free_pages = free_pages[:-aside_pages]
            self._unsafe_pages = 0
        try:
            yield
        finally:
            if len(self._allocator.free_pages) < self._unsafe_pages:
                self._may_hit_the_forward = True
            self._notice_given_out()
            if aside_pages:
                self._allocator.free_pages = torch.cat((self._allocator.free_pages, aside))
                self._unsafe_pages += aside_pages

    def needed(self) -> bool:
        """Whether what is loaded since the last call must wait for the forward under way."""
        may_hit, self._may_hit_the_forward = self._may_hit_the_forward, False
        return may_hit

    # -- in the allocator ---------------------------------------------------------------------

    def _free_slots(self, free_index: torch.Tensor) -> None:
        if self._allocator.free_group is not None:
            self._free_in_group(free_index)
        elif free_index.numel():
            self._put_back(free_index)

    def _put_back(self, *page_ids: torch.Tensor) -> None:
        self._notice_given_out()
        allocator = self._allocator
        if self._evicting:
            allocator.free_pages = torch.cat((*page_ids, allocator.free_pages))
            return
        allocator.free_pages = torch.cat((allocator.free_pages, *page_ids))
        self._unsafe_pages += sum(ids.numel() for ids in page_ids)

    def _notice_given_out(self) -> None:
        self._unsafe_pages = min(self._unsafe_pages, len(self._allocator.free_pages))
