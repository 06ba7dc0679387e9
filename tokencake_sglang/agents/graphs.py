"""The graphs that applications declared, as many as there is room for."""

from collections import OrderedDict
from collections.abc import Container

from tokencake_sglang.agents.events import Graph

NODES_KEPT = 65_536
"""Of all graphs together; above it those declared first are dropped."""


class DeclaredGraphs:
    """By application.

    Args:
        timeout_s: a graph is dropped if so long after it no agent of its application is known.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        # With when to see whether the application is there; the soonest first.
        self._graphs: OrderedDict[str, tuple[Graph, float]] = OrderedDict()
        self._nodes = 0

    def get(self, application: str) -> Graph | None:
        known = self._graphs.get(application)
        return None if known is None else known[0]

    def keep(self, application: str, graph: Graph, now_s: float) -> None:
        """In the place of an earlier one; the same once more changes nothing."""
        if graph == self.get(application):
            return
        self.drop(application)
        self._graphs[application] = graph, now_s + self.timeout_s
        self._nodes += len(graph)
        while self._nodes > NODES_KEPT:
            self.drop(next(iter(self._graphs)))

    def drop(self, application: str) -> None:
        graph, _ = self._graphs.pop(application, ((), 0.0))
        self._nodes -= len(graph)

    def expire(self, applications: Container[str], now_s: float) -> None:
        """Drops those of applications that are not there, once their time is over."""
        while self._graphs:
            application, (graph, look_s) = next(iter(self._graphs.items()))
            if look_s > now_s:
                return
            self.drop(application)
            if application in applications:
                self.keep(application, graph, now_s)
