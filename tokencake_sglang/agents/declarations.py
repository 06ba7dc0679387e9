"""What applications declared of themselves, as much as there is room for."""

from collections import OrderedDict
from collections.abc import Container

from tokencake_sglang.agents.events import ApplicationStart

NODES_KEPT = 65_536
"""Of all graphs together, a declaration without a graph being one; above it those declared first are
dropped."""


class Declarations:
    """By application.

    Args:
        timeout_s: one is dropped if so long after it no agent of its application is known.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        # With when to see whether the application is there; the soonest first.
        self._declared: OrderedDict[str, tuple[ApplicationStart, float]] = OrderedDict()
        self._nodes = 0

    def get(self, application: str) -> ApplicationStart | None:
        known = self._declared.get(application)
        return None if known is None else known[0]

    def keep(self, declared: ApplicationStart, now_s: float) -> None:
        """In the place of an earlier one; the same once more changes nothing."""
        if declared == self.get(declared.application):
            return
        self.drop(declared.application)
        self._declared[declared.application] = declared, now_s + self.timeout_s
        self._nodes += _nodes(declared)
        while self._nodes > NODES_KEPT:
            self.drop(next(iter(self._declared)))

    def drop(self, application: str) -> None:
        known = self._declared.pop(application, None)
        if known is not None:
            self._nodes -= _nodes(known[0])

    def expire(self, applications: Container[str], now_s: float) -> None:
        """Drops those of applications that are not there, once their time is over."""
        while self._declared:
            application, (declared, look_s) = next(iter(self._declared.items()))
            if look_s > now_s:
                return
            self.drop(application)
            if application in applications:
                self.keep(declared, now_s)


def _nodes(declared: ApplicationStart) -> int:
    return max(1, len(declared.graph or ()))
