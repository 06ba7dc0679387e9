"""What is known of one call's length: an immutable distribution on the grid."""

import math
from typing import Self

import numpy as np

from tokencake_sglang.temporal.durations.grid import (
    BINS,
    EDGES_S,
    LEAST_S,
    MOST_S,
    STEP,
    Floats,
    around,
    bin_of,
    log_logistic,
    logistic_ratio,
)

_WIDTHS_S = EDGES_S[1:] - EDGES_S[:-1]

LEAST_MASS = 1e-250
"""Less than this left: the grid knows nothing any more, and the power law is all there is."""

ESTIMATE_TAIL = 4.0
"""An estimate of unknown worth: log-logistic around it, quartiles at a factor of 1.3."""

NEARLY_DONE_TAIL = 40.0
"""The same of a progress near 1: quartiles at 3 %."""


class Distribution:
    """Distribution of a call's whole length in seconds.

    Given that the call has lasted ``elapsed_s``, all answers are conditional on that. Past
    everything that was seen it is the prior's power law, S(t) ~ 1/t: the median rest is the time
    elapsed (Lindy's law). ``tails[j]`` is the probability of the last j+1 bins: summed from the
    long end, so that tiny tails keep their digits.
    """

    __slots__ = ("_tails",)

    def __init__(self, mass: Floats) -> None:
        """``mass``: one per bin of the grid, of any sum above 0."""
        tails = mass[::-1].cumsum()
        tails *= 1.0 / float(tails[-1])
        tails.setflags(write=False)
        self._tails = tails

    @classmethod
    def unknown(cls, median_s: float) -> Self:
        return cls(log_logistic(median_s, 1.0))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Distribution) and bool((self._tails == other._tails).all())

    __hash__ = None  # type: ignore[assignment]

    @property
    def mass(self) -> Floats:
        """Probability of each bin."""
        tails = self._tails
        return np.concatenate(([tails[0]], tails[1:] - tails[:-1]))[::-1]

    @property
    def cumulative(self) -> Floats:
        """P(length ≤ edge) at each of the grid's edges."""
        return np.concatenate((1.0 - self._tails[::-1], [1.0]))

    def survival(self, t_s: float) -> float:
        """P(length > t)."""
        if t_s <= 0.0:
            return 1.0
        if t_s >= MOST_S:
            return 0.0
        if t_s < LEAST_S:
            index, part = 0, t_s / LEAST_S
        else:
            place = math.log(t_s / LEAST_S) / STEP
            index = min(1 + int(place), BINS - 1)
            part = min(max(place - index + 1, 0.0), 1.0)
        tails = self._tails
        upper = float(tails[BINS - 1 - index])
        lower = float(tails[BINS - 2 - index]) if index < BINS - 1 else 0.0
        return min(upper + (lower - upper) * part, 1.0)

    def quantile(self, q: float, elapsed_s: float = 0.0) -> float:
        """The whole length that is not exceeded with probability ``q``; at least ``elapsed_s``."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q: expected a probability from 0 to 1, got {q!r}")
        left = self.survival(elapsed_s)
        if left < LEAST_MASS:
            return elapsed_s / max(1.0 - q, 1e-9)
        sought = left * (1.0 - q)
        tails = self._tails
        behind = int(tails.searchsorted(sought))  # the bins that lie wholly above the answer
        if behind >= BINS:
            return elapsed_s
        upper = float(tails[behind])
        lower = float(tails[behind - 1]) if behind else 0.0
        part = (upper - sought) / (upper - lower) if upper > lower else 0.0
        index = BINS - 1 - behind
        if index == 0:
            answer_s = part * LEAST_S
        else:
            answer_s = LEAST_S * math.exp((index - 1 + part) * STEP)
        return max(answer_s, elapsed_s)

    def mean(self, elapsed_s: float = 0.0) -> float:
        """The expected whole length; of the power law, which has none, twice the time elapsed."""
        left = self.survival(elapsed_s)
        if left < LEAST_MASS:
            return 2.0 * elapsed_s
        survivals = np.concatenate((self._tails[::-1], [0.0]))
        index = bin_of(elapsed_s)
        areas = _WIDTHS_S[index:] * (survivals[index:-1] + survivals[index + 1 :])
        rest_of_bin_s = float(EDGES_S[index + 1]) - elapsed_s
        areas[0] = max(rest_of_bin_s, 0.0) * (left + float(survivals[index + 1]))
        return elapsed_s + float(areas.cumsum()[-1]) / (2.0 * left)

    def probability_within(self, horizon_s: float, elapsed_s: float = 0.0) -> float:
        """P(it ends in the next ``horizon_s`` | it has lasted ``elapsed_s``)."""
        left = self.survival(elapsed_s)
        if left < LEAST_MASS:
            return horizon_s / (elapsed_s + horizon_s) if horizon_s > 0 else 0.0
        return min(max(1.0 - self.survival(elapsed_s + horizon_s) / left, 0.0), 1.0)

    def with_progress(
        self, elapsed_s: float, *, fraction: float | None = None, total_s: float | None = None
    ) -> "Distribution":
        """What is known once the running call reports the fraction done, or a new estimate.

        The report is weighed against what was known by Bayes' rule: p(t) · g(t / estimate), with
        g log-logistic around 1, the sharper the nearer the fraction is to 1.

        Raises:
            ValueError: unless exactly one of ``fraction`` (0 to 1) and ``total_s`` is given.
        """
        if (fraction is None) == (total_s is None):
            raise ValueError("with_progress: expected one of fraction and total_s")
        if fraction is not None and not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction: expected 0 to 1, got {fraction!r}")
        tail = ESTIMATE_TAIL
        if fraction is not None:
            tail += (NEARLY_DONE_TAIL - ESTIMATE_TAIL) * fraction
            total_s = elapsed_s / fraction if fraction > 0 else None
        known = self._lasting(elapsed_s)
        if total_s is None:
            return known
        told = around(logistic_ratio(tail), min(max(total_s, elapsed_s), MOST_S))
        mass = known.mass * told
        return Distribution(mass) if float(mass.cumsum()[-1]) > LEAST_MASS else known

    def _lasting(self, elapsed_s: float) -> "Distribution":
        """Without the lengths that are over already."""
        left = self.survival(elapsed_s)
        if left < LEAST_MASS:
            return Distribution.unknown(2.0 * elapsed_s)
        index = bin_of(elapsed_s)
        mass = self.mass
        mass[:index] = 0.0
        above = float(self._tails[BINS - 2 - index]) if index < BINS - 1 else 0.0
        mass[index] = max(left - above, 0.0)
        return Distribution(mass)
