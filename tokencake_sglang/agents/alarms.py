"""When to look at somebody again, so that a step costs nothing for all the others."""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

STALE_KEPT = 64


class Alarms(Generic[K]):
    """One time per key, the earliest first; ties go to the key that was set first."""

    def __init__(self) -> None:
        self._current: dict[K, tuple[float, int, K]] = {}
        self._heap: list[tuple[float, int, K]] = []  # the current ones, and others that are stale
        self._set = 0

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, key: K) -> bool:
        return key in self._current

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alarms) and self._current == other._current

    __hash__ = None  # type: ignore[assignment]

    def set(self, key: K, time_s: float) -> None:
        """In place of the key's earlier alarm."""
        self._set += 1
        alarm = self._current[key] = time_s, self._set, key
        heapq.heappush(self._heap, alarm)
        if len(self._heap) > 2 * len(self._current) + STALE_KEPT:
            self._heap = [alarm for alarm in self._heap if self._is_current(alarm)]
            heapq.heapify(self._heap)

    def cancel(self, key: K) -> None:
        self._current.pop(key, None)

    def clear(self) -> None:
        self._current.clear()
        self._heap.clear()

    def pop_due(self, now_s: float, at_most: int | None = None) -> list[K]:
        """The keys whose time has come, the earliest ``at_most`` of them, and cancels their alarms."""
        due: list[K] = []
        while self._heap and self._heap[0][0] <= now_s and (at_most is None or len(due) < at_most):
            alarm = heapq.heappop(self._heap)
            if self._is_current(alarm):
                del self._current[alarm[2]]
                due.append(alarm[2])
        return due

    def _is_current(self, alarm: tuple[float, int, K]) -> bool:
        return self._current.get(alarm[2]) is alarm
