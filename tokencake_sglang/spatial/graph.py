"""How long an application still takes from one of its nodes on, by the graph that it declared."""

from collections.abc import Sequence
from graphlib import TopologicalSorter

from tokencake_sglang.agents.events import GraphNode

NODE_S = 30.0
"""Taken for each node where no time is declared of any: then the longest chain of nodes counts."""


class DeclaredPaths:
    """Seconds to the application's end, over the longest way that is left.

    A node takes the time that was declared of it, or else the mean of those declared of others.

    Args:
        graph: without circles; ``after`` names nodes of the graph.
    """

    def __init__(self, graph: Sequence[GraphNode]) -> None:
        declared = [node.expected_s for node in graph if node.expected_s is not None]
        self.has_times = bool(declared)
        usual_s = sum(declared) / len(declared) if declared else NODE_S
        self._node_s = {
            node.name: usual_s if node.expected_s is None else node.expected_s for node in graph
        }
        self._after_s = dict.fromkeys(self._node_s, 0.0)
        before = {node.name: node.after for node in graph}
        for name in reversed(list(TopologicalSorter(before).static_order())):
            way_s = self._node_s[name] + self._after_s[name]
            for other in before[name]:
                self._after_s[other] = max(self._after_s[other], way_s)

    def remaining_s(self, node: str, elapsed_s: float = 0.0) -> float | None:
        """From ``elapsed_s`` after the node's beginning; None for a node that was not declared."""
        if node not in self._node_s:
            return None
        return max(0.0, self._node_s[node] - elapsed_s) + self._after_s[node]
