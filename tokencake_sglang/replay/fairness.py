"""Whether a run was fair to its applications."""

from collections.abc import Iterable, Mapping

import msgspec


class Fairness(msgspec.Struct, frozen=True, kw_only=True):
    """Of slowdowns: an application's end-to-end time over its critical path's alone.

    ``jain``: 1 if all were slowed down alike, 1/n if one of n was served and n - 1 were not.
    """

    jain: float
    worst_slowdown: float


def fairness(end_to_end_s: Mapping[str, float], alone_s: Mapping[str, float]) -> Fairness:
    """How evenly the waiting was spread.

    Args:
        alone_s: application → the least it takes on a server of its own (``critical_path``).

    Raises:
        ValueError: if an application would take no time alone: it has no slowdown.
    """
    slowdowns = []
    for name, seconds in end_to_end_s.items():
        if alone_s[name] <= 0:
            raise ValueError(f"alone_s: expected more than 0 for {name!r}, got {alone_s[name]}")
        slowdowns.append(seconds / alone_s[name])
    return Fairness(jain=jain_index(slowdowns), worst_slowdown=max(slowdowns, default=0.0))


def jain_index(values: Iterable[float]) -> float:
    """``(sum x)^2 / (n sum x^2)``; 1 where there is nothing to share.

    Jain, Chiu and Hawe 1984, "A quantitative measure of fairness and discrimination for resource
    allocation in shared computer systems", DEC-TR-301.
    """
    known = list(values)
    squares = sum(value * value for value in known)
    return sum(known) ** 2 / (len(known) * squares) if squares else 1.0
