"""How many tokens agents answer with, learnt by type: declared limits say little about it."""

import bisect
import math
from collections import OrderedDict, deque

LENGTHS_KEPT = 128
"""Latest outputs of a type that are remembered."""

TYPES_KEPT = 1024
"""Types that are remembered; the one longest without an output is forgotten first."""

FEWEST = 8
"""Outputs of a type before anything is said of the next one."""

QUANTILE = 0.9
"""Headroom that nine of ten outputs keep to, unless the tenth is so long that the mean is more: of
many that run some will be longer, and all together take their mean."""


class OutputLengths:
    """Empirical distributions of output lengths, in tokens, one for each agent type."""

    def __init__(self) -> None:
        self._latest: OrderedDict[str, deque[int]] = OrderedDict()
        self._sorted: dict[str, list[int]] = {}

    def learn(self, agent_type: str, tokens: int) -> None:
        """An output has ended by itself or at its limit."""
        latest = self._latest.setdefault(agent_type, deque())
        self._latest.move_to_end(agent_type)
        ordered = self._sorted.setdefault(agent_type, [])
        if len(latest) == LENGTHS_KEPT:
            del ordered[bisect.bisect_left(ordered, latest.popleft())]
        latest.append(tokens)
        bisect.insort(ordered, tokens)
        if len(self._latest) > TYPES_KEPT:
            forgotten, _ = self._latest.popitem(last=False)
            del self._sorted[forgotten]

    def tokens_left(self, agent_type: str, generated_tokens: int) -> int | None:
        """How many tokens an output that has so many already may still get.

        Of those remembered that were longer it is the ``QUANTILE`` or the mean, whichever is more.
        None where too few are known, or none was as long: then only the declared limit is sure.
        """
        ordered = self._sorted.get(agent_type, ())
        if len(ordered) < FEWEST:
            return None
        first = bisect.bisect_right(ordered, generated_tokens)
        longer = ordered[first:]
        if not longer:
            return None
        quantile = longer[math.ceil(QUANTILE * len(longer)) - 1]
        return max(quantile, math.ceil(sum(longer) / len(longer))) - generated_tokens
