"""The bins that durations and ratios of durations are counted in: twelve to the octave.

Bin 0 is everything below a millisecond; the last edge is a week. Only additions and products of
arrays are used here and by the users of these arrays, never sums whose order numpy may choose: the
same calls give the same bits on every rank.
"""

import itertools
import math
from typing import Any, TypeAlias

import numpy as np

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

PER_OCTAVE = 12
STEP = math.log(2) / PER_OCTAVE
"""Width of a bin in ln(seconds): a factor of 1.06."""

LEAST_S = 1e-3
BINS = 351
EDGES_S: Floats = np.array([0.0] + [LEAST_S * 2 ** (k / PER_OCTAVE) for k in range(BINS)])
MOST_S = float(EDGES_S[-1])

RATIO_ZERO = 160
"""The bin of ratio 1; the outermost are factors of 10,000."""
RATIO_BINS = 2 * RATIO_ZERO + 1

PHASES = 4
"""Places inside a bin that are told apart."""


def position(duration_s: float) -> float:
    """Where a duration lies, in bins; the middle of bin k is k."""
    return math.log(max(duration_s, LEAST_S) / LEAST_S) / STEP + 0.5


def bin_of(duration_s: float) -> int:
    if duration_s < LEAST_S:
        return 0
    return min(1 + int(math.log(duration_s / LEAST_S) / STEP), BINS - 1)


def ratio_position(duration_s: float, estimate_s: float) -> float:
    """Where actual/estimate lies, in bins; the outermost bins hold what is further out."""
    ratio = max(duration_s, LEAST_S) / max(estimate_s, LEAST_S)
    return min(max(math.log(ratio) / STEP + RATIO_ZERO, 0.0), RATIO_BINS - 1.0)


def log_logistic(median_s: float, tail: float) -> Floats:
    """Mass per bin of S(t) = 1 / (1 + (t/median)^tail): a power law beyond the median."""
    survival = [1.0 / (1.0 + (float(edge_s) / median_s) ** tail) for edge_s in EDGES_S]
    survival[-1] = 0.0
    return np.array([a - b for a, b in itertools.pairwise(survival)])


def logistic_ratio(tail: float) -> Floats:
    """Mass per ratio bin of a log-logistic around 1."""
    edges = [(k - RATIO_ZERO - 0.5) * STEP for k in range(RATIO_BINS + 1)]
    below = [1.0 / (1.0 + math.exp(-tail * edge)) for edge in edges]
    below[0], below[-1] = 0.0, 1.0
    return np.array([b - a for a, b in itertools.pairwise(below)])


def around(mass: Floats, estimate_s: float) -> Floats:
    """Mass per ratio bin, moved to the bins of estimate × ratio; what falls off the grid is lost."""
    place = position(estimate_s) - RATIO_ZERO
    first = math.floor(place)
    share = place - first
    spread = np.empty(RATIO_BINS + 1)
    spread[-1] = 0.0
    np.multiply(mass, 1.0 - share, out=spread[:-1])
    spread[1:] += mass * share
    moved = np.zeros(BINS)
    low, high = max(0, first), min(BINS, first + RATIO_BINS + 1)
    moved[low:high] = spread[low - first : high - first]
    return moved


def total(mass: Floats) -> float:
    """The sum, from left to right (numpy's own order differs between processors)."""
    return float(mass.cumsum()[-1])


class _Bells:
    """Gaussian bells of unit mass, by their deviation in quarter bins and their phase in a bin."""

    WIDEST = 16.0

    def __init__(self) -> None:
        self._bells = [self._of(max(number, 1) / 4) for number in range(int(self.WIDEST * 4) + 1)]

    @staticmethod
    def _of(deviation: float) -> list[Floats]:
        reach = max(1, math.ceil(2.5 * deviation))
        bells = []
        for phase in range(PHASES):
            middle = (phase + 0.5) / PHASES - 0.5
            raw = [
                math.exp(-(((x - middle) / deviation) ** 2) / 2) for x in range(-reach, reach + 1)
            ]
            sum_ = math.fsum(raw)
            bells.append(np.array([value / sum_ for value in raw]))
        return bells

    def get(self, deviation: float, phase: float) -> Floats:
        return self._bells[int(min(deviation, self.WIDEST) * 4)][int(phase * PHASES)]


_BELLS = _Bells()


def spread(weights: Floats, place: float, weight: float, deviation: float) -> None:
    """Adds ``weight`` as a bell around ``place``, moved inward where the bell would not fit."""
    middle = math.floor(place + 0.5)
    bell = _BELLS.get(deviation, place + 0.5 - middle)
    size = len(bell)
    low = min(max(middle - size // 2, 0), len(weights) - size)
    weights[low : low + size] += bell * weight
