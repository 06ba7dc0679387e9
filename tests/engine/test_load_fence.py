"""The books behind loads beside a forward: which free pages the forward under way may know."""

import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.strategies import booleans, integers, sampled_from
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

from tokencake_sglang.engine.load_fence import LoadFence

PAGES = 6
OLD_NODE = -1


def next_node_id() -> int:
    """As of a node that comes into the tree now."""
    UnifiedTreeNode.counter += 1
    return UnifiedTreeNode.counter - 1


class Books(RuleBasedStateMachine):
    """SGLang's own allocators against a model that knows every page by name."""

    @initialize(page_size=sampled_from([1, 4]))
    def start(self, page_size):
        if page_size == 1:
            self.allocator = TokenToKVPoolAllocator(PAGES, torch.int64, "cpu", None, False)
        else:
            self.allocator = PagedTokenToKVPoolAllocator(
                PAGES * page_size, page_size, torch.int64, "cpu", None, False
            )
        self.page_size = page_size
        self.every = set(self.allocator.free_pages.tolist())
        self.fence = LoadFence(self.allocator)
        self.requests: list[torch.Tensor] = []
        self.nodes: dict[int, torch.Tensor] = {}
        self.unsafe: set[int] = set()  # free, and maybe known to the forward under way
        self.known: set[int] = set()  # nodes: since the launch in the tree or written

    def pages(self, slots: torch.Tensor) -> set[int]:
        return {slot // self.page_size for slot in slots.tolist()}

    @rule()
    def launch(self):
        self.fence.launched()
        self.unsafe, self.known = set(), set()

    @rule(pages=integers(1, 3))
    def admit(self, pages):
        slots = self.allocator.alloc(pages * self.page_size)
        if slots is not None:
            self.requests.append(slots)
            self.unsafe -= self.pages(slots)

    @precondition(lambda self: self.requests)
    @rule(enters_tree=booleans(), old_node=booleans(), told=booleans())
    def end(self, enters_tree, old_node, told):
        slots = self.requests.pop(0)
        if not enters_tree:
            self.allocator.free(slots)
            self.unsafe |= self.pages(slots)
            return
        # A node whose slots had been evicted gets the request's.
        old_node = old_node and OLD_NODE not in self.nodes
        node_id = OLD_NODE if old_node else next_node_id()
        self.nodes[node_id] = slots
        self.known.add(node_id)
        if old_node or told:  # a new one may be a part of what was told, which SGLang has split
            self.fence.stored([node_id])

    @precondition(lambda self: len(self.requests) > 1)
    @rule()
    def end_two_at_once(self):
        self.allocator.free_group_begin()
        for slots in (self.requests.pop(), self.requests.pop()):
            self.allocator.free(slots)
            self.unsafe |= self.pages(slots)
        self.allocator.free_group_end()

    @precondition(lambda self: self.nodes)
    @rule(which=integers(0, 10))
    def evict(self, which):
        node_id = sorted(self.nodes)[which % len(self.nodes)]
        slots = self.nodes.pop(node_id)
        with self.fence.evicting(node_id):
            self.allocator.free(slots)
        if node_id in self.known:
            self.unsafe |= self.pages(slots)

    @rule(pages=integers(1, 5), set_aside=booleans())
    def load(self, pages, set_aside):
        free = self.free
        aside = self.unsafe if set_aside else set()
        with self.fence.loading(set_aside=set_aside):
            slots = self.allocator.alloc(pages * self.page_size)
        assert (slots is None) == (pages > len(free - aside))
        taken = set() if slots is None else self.pages(slots)
        assert not taken & aside
        assert self.fence.needed() == bool(taken & self.unsafe)
        assert not self.fence.needed()  # it speaks of what was loaded since the last call
        self.unsafe -= taken
        if slots is not None:
            self.requests.append(slots)

    @property
    def free(self) -> set[int]:
        return set(self.allocator.free_pages.tolist())

    @invariant()
    def no_page_is_lost_or_given_twice(self):
        if not hasattr(self, "allocator"):
            return
        held = [self.pages(slots) for slots in (*self.requests, *self.nodes.values())]
        assert len(self.allocator.free_pages) == len(self.free)
        assert sum(map(len, held)) + len(self.free) == len(self.every)
        assert set.union(self.free, *held) == self.every

    @rule()
    def ask(self):
        assert self.fence.unsafe_tokens == len(self.unsafe) * self.page_size


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
