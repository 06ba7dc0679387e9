"""When to look at somebody again, so that a step costs nothing for all the others."""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

STALE_KEPT = 64


class Alarms(Generic[K]):
    """One time per key, the earliest first; of equal times the smaller key is first."""

    def __init__(self) -> None:
        self._times_s: dict[K, float] = {}
        self._heap: list[tuple[float, K]] = []  # of all keys, and of times that hold no more

    def __len__(self) -> int:
        return len(self._times_s)

    def __contains__(self, key: K) -> bool:
        return key in self._times_s

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alarms) and self._times_s == other._times_s

    __hash__ = None  # type: ignore[assignment]

    def set(self, key: K, time_s: float) -> None:
        """In place of the key's earlier alarm."""
        if self._times_s.get(key) == time_s:
            return
        self._times_s[key] = time_s
        heapq.heappush(self._heap, (time_s, key))
        if 2 * len(self._heap) > 3 * len(self._times_s) + 2 * STALE_KEPT:
            self._heap = [(time_s, key) for key, time_s in self._times_s.items()]
            heapq.heapify(self._heap)

    def cancel(self, key: K) -> None:
        self._times_s.pop(key, None)

    def clear(self) -> None:
        self._times_s.clear()
        self._heap.clear()

    def pop_due(self, now_s: float, at_most: int | None = None) -> list[K]:
        """The keys whose time has come, the earliest ``at_most`` of them, and cancels their alarms."""
        due: list[K] = []
        while self._heap and self._heap[0][0] <= now_s and (at_most is None or len(due) < at_most):
            time_s, key = heapq.heappop(self._heap)
            if self._times_s.get(key) == time_s:
                del self._times_s[key]
                due.append(key)
        return due
