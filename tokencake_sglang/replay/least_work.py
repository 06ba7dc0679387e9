"""What of a workload no server can avoid: tokens to compute, and memory held while decoding.

Both follow from who shares a prefix with whom. In the radix tree of all prompts and outputs each
node has *owners*: the requests whose prompt begins with it, or whose prompt and output do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.prefix_tree import PrefixTree, _Node
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Workload


@dataclass(frozen=True, slots=True)
class RequestWork:
    """What one request costs on a server whose cache forgets nothing.

    ``new_tokens``: of its prompt, those that no request which may precede it has computed; at
    least one, for the first output token needs one forward pass. ``held_tokens``: its fair part
    of the memory that the prompts of running requests take, see ``least_work``.
    """

    new_tokens: int
    held_tokens: float


class Stretch(NamedTuple):
    """``length`` tokens, ``start`` tokens deep in the prompts of these ``requests`` and no others.

    Nobody generates them: they are computed first when one of the requests is prefilled.
    """

    start: int
    length: int
    requests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeastWork:
    """``requests``: by id. ``prefill``: application → the stretches of prompt that only its own
    requests have, each computed at least once."""

    requests: dict[str, RequestWork]
    prefill: dict[str, tuple[Stretch, ...]]


def least_work(workload: Workload) -> LeastWork:
    """The least work of every request of a workload.

    ``new_tokens``: a prompt token can be in a cache when the request is prefilled only if another
    request has it at the same place of the same prefix, and does not itself wait for this one.
    Two that may run at once are both taken to find the other's: so the sum over requests may be
    too low, and ``prefill`` counts each stretch once instead.

    ``held_tokens``: let S be requests that decode at once. Their distinct prompt tokens are at
    least the sum over S of ``held_tokens``, with ``held_tokens`` the sum over a prompt's nodes of
    a node's length divided by the most of its owners that can run at once: a node that k of S own
    is counted k times, each time with at most one k-th.
    """
    ancestors = _ancestors(workload)
    tree = PrefixTree()
    for request in workload.requests:
        tree.insert(request.prompt)
        tree.insert((*request.prompt, *request.output))
    readers: dict[_Node, list[str]] = {}
    owners: dict[_Node, list[str]] = {}
    paths: dict[str, list[_Node]] = {}
    for name in ancestors:
        request = workload.by_id[name]
        paths[name] = list(_path(tree, request.prompt))
        for node in paths[name]:
            readers.setdefault(node, []).append(name)
        for node in _path(tree, (*request.prompt, *request.output)):
            owners.setdefault(node, []).append(name)
    width = {node: _most_at_once(names, ancestors) for node, names in readers.items()}
    requests: dict[str, RequestWork] = {}
    for name, path in paths.items():
        cached = 0
        for node in path:
            if not any(o != name and name not in ancestors[o] for o in owners[node]):
                break
            cached += node.span.length
        held_tokens = sum(node.span.length / width[node] for node in path)
        length = workload.by_id[name].prompt_length
        requests[name] = RequestWork(max(1, length - cached), held_tokens)
    prefill: dict[str, list[Stretch]] = {group: [] for group in workload.applications}
    seen: set[_Node] = set()
    for path in paths.values():
        depth = 0
        for node in path:
            groups = {workload.by_id[o].group for o in owners[node]}
            generated = len(owners[node]) > len(readers[node])
            if node not in seen and not generated and len(groups) == 1:
                stretch = Stretch(depth, node.span.length, tuple(readers[node]))
                prefill[groups.pop()].append(stretch)
            seen.add(node)
            depth += node.span.length
    return LeastWork(requests, {group: tuple(parts) for group, parts in prefill.items()})


def _ancestors(workload: Workload) -> dict[str, frozenset[str]]:
    """Request → those that have ended before it is sent; keys in an order that respects this."""
    settled: dict[str, frozenset[str]] = {}
    ancestors: dict[str, frozenset[str]] = {}

    def settled_by(name: str) -> frozenset[str]:
        """Those that have ended when ``name`` is settled."""
        if name not in settled:
            call = workload.by_id[name].call
            settled[name] = ancestors[name].union(
                (name,), *(settled_by(other) for other in (call.until if call else ()))
            )
        return settled[name]

    # In this order whatever a request waits for has been sent before it.
    for name in schedule(workload).dispatched_s:
        request = workload.by_id[name]
        before = [settled_by(other) for other in request.wait_for]
        if request.spawned_by is not None:
            before.append(ancestors[request.spawned_by] | {request.spawned_by})
        ancestors[name] = frozenset().union(*before)
    return ancestors


def _most_at_once(names: Sequence[str], ancestors: Mapping[str, frozenset[str]]) -> int:
    """An upper bound of how many of these requests can run at once.

    In each chain, where every request waits for the one before, at most one runs; so the number
    of chains that cover them all is a bound (Dilworth). They are found greedily, so there may be
    more than are needed.
    """
    last_of_chains: list[str] = []
    for name in names:
        before = ancestors[name]
        for i, last in enumerate(last_of_chains):
            if last in before:
                last_of_chains[i] = name
                break
        else:
            last_of_chains.append(name)
    return len(last_of_chains)


def _path(tree: PrefixTree, spans: Sequence[Span]) -> Iterator[_Node]:
    """The nodes of a sequence that is in the tree and ends where a node does."""
    children = tree._root.children
    for segment, start, left in spans:
        while left:
            node = children[segment, start]
            yield node
            start, left = start + node.span.length, left - node.span.length
            children = node.children
