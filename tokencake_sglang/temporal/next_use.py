"""When an agent's KV will be used again: the one number that eviction goes by."""

import math
from bisect import bisect_right
from dataclasses import dataclass, field

from tokencake_sglang.temporal.returns import Return

NEVER_S = math.inf

STAMPS_KEPT = 1024


def seconds_to_next_use(
    now_s: float, *, has_request: bool, expected: Return | None, last_event_s: float
) -> float:
    """Expected seconds until the agent's KV is read.

    Now for an agent with a request, until its return for one in a call. Of an agent that said
    nothing, the time that has passed predicts the time that is left (Lindy's law).

    Args:
        expected: when its calls are expected to end; None when it is in none.
        last_event_s: when it was last heard of.
    """
    if has_request:
        return 0.0
    if expected is None:
        return max(0.0, now_s - last_event_s)
    return expected.seconds_left(now_s)


@dataclass(slots=True)
class AccessClock:
    """Turns SGLang's logical access times into seconds, as exactly as it was told.

    Bounded: of more than ``STAMPS_KEPT`` stamps the older half is thinned to every second one.
    """

    _counts: list[float] = field(default_factory=list)
    _stamps_s: list[float] = field(default_factory=list)

    def tell(self, count: float, now_s: float) -> None:
        """At ``now_s`` the logical time was ``count``. Neither ever falls."""
        if self._stamps_s and now_s <= self._stamps_s[-1]:
            return
        self._counts.append(count)
        self._stamps_s.append(now_s)
        if len(self._counts) > STAMPS_KEPT:
            half = STAMPS_KEPT // 2
            self._counts[:half] = self._counts[:half:2]
            self._stamps_s[:half] = self._stamps_s[:half:2]

    def age_s(self, count: float, now_s: float) -> float:
        """Seconds since the logical time was ``count``: at most so many, to the last stamp."""
        place = bisect_right(self._counts, count)
        if place == 0:
            return now_s - self._stamps_s[0] if self._stamps_s else 0.0
        return max(0.0, now_s - self._stamps_s[place - 1])
