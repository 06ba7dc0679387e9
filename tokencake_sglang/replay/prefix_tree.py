"""The radix tree of a workload's prompts and outputs: what an unlimited cache would hold."""

from collections.abc import Iterable, Sequence

from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Request


class _Node:
    __slots__ = ("children", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.children: dict[tuple[str, int], _Node] = {}


class PrefixTree:
    """A radix tree over spans. Equal tokens are equal (segment, offset), so no token is expanded."""

    def __init__(self) -> None:
        self._root = _Node(Span("", 0, 0))
        self.tokens = 0
        """Distinct tokens held: the KV that keeps everything takes."""

    def insert(self, spans: Sequence[Span]) -> int:
        """Adds a sequence.

        Returns:
            How many of its tokens, from the first on, were there already.
        """
        children = self._root.children
        matched = 0
        missed = False
        for span in spans:
            segment, start, left = span
            while left:
                node = children.get((segment, start))
                if node is None:
                    node = _Node(Span(segment, start, left))
                    children[segment, start] = node
                    self.tokens += left
                    missed = True
                elif node.span.length > left:
                    self._split(node, left)
                start, left = start + node.span.length, left - node.span.length
                if not missed:
                    matched += node.span.length
                children = node.children
        return matched

    @staticmethod
    def _split(node: _Node, length: int) -> None:
        segment, start, whole = node.span
        rest = _Node(Span(segment, start + length, whole - length))
        rest.children, node.children = node.children, {(segment, start + length): rest}
        node.span = Span(segment, start, length)


def least_prefill(requests: Iterable[Request]) -> tuple[int, int]:
    """What a cache that forgets nothing still has to compute, requests taken in the given order.

    Requests that could share a prefix are taken to share it even where they run at once, so this
    is a lower bound for every server, with any page size.

    Returns:
        Prompt tokens computed, and distinct tokens of prompts and outputs together.
    """
    tree = PrefixTree()
    computed = 0
    for request in requests:
        computed += request.prompt_length - tree.insert(request.prompt)
        tree.insert((*request.prompt, *request.output))
    return computed, tree.tokens
