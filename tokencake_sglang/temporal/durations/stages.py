"""The sum of stages that follow one another, each with a distribution of its own."""

import numpy as np

from tokencake_sglang.temporal.durations.distribution import Distribution
from tokencake_sglang.temporal.durations.grid import BINS, position, spread

POINTS = 24
"""Equally likely lengths that stand for a distribution while sums are made."""


def in_sequence(stages: list[Distribution], begin_s: float = 0.0) -> Distribution:
    """``begin_s`` and then one stage after the other, taken as independent.

    Pairwise sums of equally likely lengths, thinned to as many again. The tail beyond the last
    point is the power law of a call of which nothing is known.
    """
    levels = [(number + 0.5) / POINTS for number in range(POINTS)]
    sums_s = [begin_s]
    for stage in stages:
        points_s = [stage.quantile(level) for level in levels]
        all_s = sorted(a + b for a in sums_s for b in points_s)
        each = len(all_s) // POINTS
        sums_s = [all_s[number * each + each // 2] for number in range(POINTS)]
    mass = np.zeros(BINS)
    for sum_s in sums_s:
        spread(mass, min(position(sum_s), BINS - 1.0), 1.0 / len(sums_s), deviation=1.5)
    mass += Distribution.unknown(max(sums_s[len(sums_s) // 2], 1e-3)).mass * (0.5 / POINTS)
    return Distribution(mass)
