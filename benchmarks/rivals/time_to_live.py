"""Continuum's model of how long a pin pays (arXiv 2511.02230v6, §4.1 and §4.2). Pure.

A pin of τ seconds costs τ of its memory's time. If the program is back by then it saves B: the
reload, and the queue that whoever lost its KV has to stand in again, as far as programs go on.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence


def time_to_live_s(durations_s: Sequence[float], benefit_s: float) -> float:
    """τ* of eq. 2 for an empirical distribution; ``durations_s`` sorted and not empty."""
    best_s, best = 0.0, bisect_right(durations_s, 0.0) / len(durations_s) * benefit_s
    for place, duration_s in enumerate(durations_s, start=1):
        last_of_its_value = place == len(durations_s) or durations_s[place] > duration_s
        utility = place / len(durations_s) * benefit_s - duration_s
        if last_of_its_value and utility > best:
            best_s, best = duration_s, utility
    return best_s


def default_time_to_live_s(benefit_s: float) -> float:
    """τ* of eq. 2 for durations of Exp(1 s)."""
    return math.log(benefit_s) if benefit_s > 1.0 else 0.0


class Memoryfulness:
    """η = −Corr(k, N − k) over the turns of ended programs: 1 if all are of one length."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._yy = self._xy = 0

    def program_ended(self, turns: int) -> None:
        for done in range(1, turns):
            left = turns - done
            self._n += 1
            self._x += done
            self._y += left
            self._xx += done * done
            self._yy += left * left
            self._xy += done * left

    @property
    def eta(self) -> float:
        of_x = self._n * self._xx - self._x**2
        of_y = self._n * self._yy - self._y**2
        if of_x == 0 or of_y == 0:
            return 1.0
        return -(self._n * self._xy - self._x * self._y) / math.sqrt(of_x * of_y)
