"""Comparing many runs at once: averages of ratios, and how far two rankings agree."""

import itertools
import math
from collections.abc import Sequence


def geometric_mean(values: Sequence[float]) -> float:
    """The mean for ratios: doubling and halving cancel out.

    Raises:
        ValueError: without values, or for one that is not above 0.
    """
    if not values or min(values) <= 0:
        raise ValueError(f"geometric mean: expected values above 0, got {list(values)}")
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings of the same items: 1 the same order, -1 the reverse.

    1.0 where nothing is ordered in either, for then nothing disagrees.
    """
    agreeing = disagreeing = tied_first = tied_second = 0
    for (a, x), (b, y) in itertools.combinations(zip(first, second, strict=True), 2):
        product = (a > b) - (a < b), (x > y) - (x < y)
        tied_first += product[0] == 0
        tied_second += product[1] == 0
        agreeing += product[0] * product[1] > 0
        disagreeing += product[0] * product[1] < 0
    pairs = len(first) * (len(first) - 1) // 2
    scale = math.sqrt((pairs - tied_first) * (pairs - tied_second))
    return (agreeing - disagreeing) / scale if scale else 1.0
