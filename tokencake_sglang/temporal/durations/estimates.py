"""What callers' estimates are worth, learned per caller.

Three ways to use an estimate e, mixed by how well each has predicted (Bayesian model averaging with
forgetting; Raftery et al. 2010):

- *history*: not at all;
- *estimate*: length = e · ratio, the ratio from this caller's past ratios of actual to estimate;
- *both*: history(t) · ratio(t / e), Bayes' rule with the estimate as a noisy measurement of t.

"Both" is best for an honest, noisy caller; "estimate" for one whose guess already holds what the
history knows, for then "both" would count it twice; "history" for one who names any number.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from tokencake_sglang.temporal.durations.grid import (
    RATIO_BINS,
    Floats,
    around,
    logistic_ratio,
    ratio_position,
    total,
)
from tokencake_sglang.temporal.durations.history import Histogram

MAX_CALLERS = 512

RATIO_TAIL = 4.0
"""Of a caller nothing is known of: quartiles of actual/estimate at a factor of 1.3."""
CONCENTRATION, MEMORY = (2.0, 8.0), (500.0, 100.0)
"""Of all callers' ratios, and of one caller's around them."""

FORGETTING = 0.98
SHARED = 0.3
"""Of the score of all callers together, so much counts for each."""

Weights = list[float]
Caller = tuple[str | None, str]

KNOWN: Weights = [1.0, 3.0, 4.0]
"""Weights of history, estimate and both before any score, for a tool with history."""
UNKNOWN: Weights = [0.05, 8.0, 0.5]
"""The same for a tool without: the estimate is all there is."""
HALFWAY = 1.0
"""After so many calls the weights are half-way between the two."""

NO_SCORES: Weights = [0.0] * 3


def bell(ratios: Histogram) -> float:
    """Deviation in bins of the next ratio's bell: Silverman's rule, 0.9 σ n^-1/5.

    σ is √π/2 of the mean step between normal draws. So exact estimates stay sharp, and rare ratios
    of wild ones are no lone spikes.
    """
    if not ratios.total:
        return 1.0
    return max(0.25, 0.8 * ratios.steps * (ratios.count + 1.0) ** -0.2)


@dataclass
class Estimates:
    """Ratios and scores, of at most ``max_callers``; those longest unheard are forgotten."""

    max_callers: int = MAX_CALLERS
    prior: Floats = field(default_factory=lambda: logistic_ratio(RATIO_TAIL))
    ratios: Histogram = field(default_factory=lambda: Histogram(RATIO_BINS))
    scores: Weights = field(default_factory=lambda: [0.0] * 3)
    callers: OrderedDict[Caller, tuple[Histogram, Weights]] = field(default_factory=OrderedDict)

    def mix(self, caller: Caller, known: float, given_s: float, history: Floats) -> Floats:
        """``history`` and the estimate in one; ``known`` calls are behind the former."""
        own, of_estimate, of_both = self.weights(caller, known)
        _, estimate, both = self._ways(caller, given_s, history)
        mixed = history * own
        estimate *= of_estimate
        mixed += estimate
        both *= of_both
        mixed += both
        return mixed

    def weights(self, caller: Caller, known: float) -> Weights:
        """Of the three ways; sum 1."""
        own = self.callers.get(caller)
        theirs = own[1] if own else NO_SCORES
        scores = [SHARED * all_ + one for all_, one in zip(self.scores, theirs, strict=True)]
        best = max(scores)
        new = HALFWAY / (known + HALFWAY)
        weights = [
            ((1.0 - new) * settled + new * first) * math.exp(score - best)
            for settled, first, score in zip(KNOWN, UNKNOWN, scores, strict=True)
        ]
        sum_ = weights[0] + weights[1] + weights[2]
        return [weight / sum_ for weight in weights]

    def _ways(self, caller: Caller, given_s: float, history: Floats) -> tuple[Floats, ...]:
        estimate = around(self._ratio_mass(caller), given_s)
        both = history * estimate
        both *= 1.0 / total(both)
        return history, estimate, both

    def _ratio_mass(self, caller: Caller) -> Floats:
        """All callers' ratios around the prior, this one's around those."""
        left = 1.0
        own = self.callers.get(caller)
        parts: list[tuple[Floats, float]] = []
        for node, concentration in (
            (own[0] if own else None, CONCENTRATION[1]),
            (self.ratios, CONCENTRATION[0]),
        ):
            if node is not None and node.total:
                share = node.count / (node.count + concentration)
                parts.append((node.weights, left * share / node.total))
                left *= 1.0 - share
        mass = self.prior * left
        for weights, factor in parts:
            mass += weights * factor
        return mass

    def observe(
        self, caller: Caller, given_s: float, duration_s: float, index: int, history: Floats
    ) -> None:
        """``history``: what it said before; ``index``: the bin of ``duration_s``."""
        ratios, scores = self.callers.get(caller) or (Histogram(RATIO_BINS), [0.0] * 3)
        gained = [
            math.log(max(float(way[index]), 1e-9)) for way in self._ways(caller, given_s, history)
        ]
        for kept in (self.scores, scores):
            for way, gain in enumerate(gained):
                kept[way] = FORGETTING * kept[way] + gain
        place = ratio_position(duration_s, given_s)
        for node, memory in ((self.ratios, MEMORY[0]), (ratios, MEMORY[1])):
            node.add(place, memory, bell(node))
        self.callers[caller] = (ratios, scores)
        self.callers.move_to_end(caller)
        while len(self.callers) > self.max_callers:
            self.callers.popitem(last=False)
