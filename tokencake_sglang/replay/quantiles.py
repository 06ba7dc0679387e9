"""Quantiles, by one rule everywhere."""

import statistics
from collections.abc import Iterable

import msgspec


def quantile_index(count: int, q: float) -> int:
    """Which of ``count`` sorted values is the ``q``-quantile, counted from zero."""
    return min(count - 1, int(q * count))


def quantile(values: Iterable[float], q: float) -> float:
    """The value at index ``floor(q n)`` of the n sorted values; 0 where there are none.

    Always a value that occurred, never one between two: the smallest that more than ``q n``
    values do not exceed (the largest for ``q`` = 1).
    """
    ordered = sorted(values)
    return ordered[quantile_index(len(ordered), q)] if ordered else 0.0


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean; 0 where there are no values."""
    known = list(values)
    return statistics.fmean(known) if known else 0.0


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution in four numbers, in the unit of its values."""

    mean: float
    p50: float
    p95: float
    p99: float


class SpreadAndMax(Spread, frozen=True, kw_only=True):
    max: float


def spread(values: Iterable[float]) -> Spread:
    ordered = sorted(values)
    return Spread(
        mean=mean(ordered),
        p50=quantile(ordered, 0.5),
        p95=quantile(ordered, 0.95),
        p99=quantile(ordered, 0.99),
    )


def spread_and_max(values: Iterable[float]) -> SpreadAndMax:
    ordered = sorted(values)
    return SpreadAndMax(
        mean=mean(ordered),
        p50=quantile(ordered, 0.5),
        p95=quantile(ordered, 0.95),
        p99=quantile(ordered, 0.99),
        max=max(ordered, default=0.0),
    )
