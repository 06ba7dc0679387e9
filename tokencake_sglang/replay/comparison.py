"""The figures of several systems side by side, and which is best at what. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

EQUAL_WITHIN = 0.01
"""Figures that differ by less than this share of the better one are equal."""


class Row(NamedTuple):
    """One line of the table; ``better``: what the verdict calls it, if it is judged at all."""

    label: str
    path: tuple[str, ...]
    unit: str
    better: str | None = None


ROWS = (
    Row("end to end, mean", ("end_to_end_s", "mean"), "s", "mean end-to-end time"),
    Row("end to end, P50", ("end_to_end_s", "p50"), "s"),
    Row("end to end, P95", ("end_to_end_s", "p95"), "s", "P95 end-to-end time"),
    Row("end to end, P99", ("end_to_end_s", "p99"), "s", "P99 end-to-end time"),
    Row("makespan", ("makespan_s",), "s", "makespan"),
    Row(
        "first token of a returning turn, mean",
        ("first_token_s", "returning", "mean"),
        "s",
        "mean first token of returning turns",
    ),
    Row("first token of a returning turn, P50", ("first_token_s", "returning", "p50"), "s"),
    Row(
        "first token of a returning turn, P95",
        ("first_token_s", "returning", "p95"),
        "s",
        "P95 first token of returning turns",
    ),
    Row("first token of a returning turn, P99", ("first_token_s", "returning", "p99"), "s"),
    Row("prefill computed", ("prefill_tokens", "computed"), "tokens"),
    Row("prefill wasted", ("prefill_tokens", "wasted"), "tokens", "wasted prefill"),
    Row("prompt tokens found on the device", ("hits", "device_tokens"), "tokens"),
    Row("prompt tokens found on the host", ("hits", "host_tokens"), "tokens"),
    Row("copied to the device", ("transfers", "to_device_bytes"), "bytes"),
    Row("copied to the host", ("transfers", "to_host_bytes"), "bytes"),
    Row("retractions", ("retractions",), "tokens"),
)


def value(figures: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    """A figure by its path; None where a run has none, such as the tail of no returning turn."""
    found: Any = figures
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float) else None


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each figure, a column for each system."""
    lines = [["", *figures]]
    for row in ROWS:
        values = [value(one, row.path) for one in figures.values()]
        if any(found is not None for found in values):
            lines.append([row.label, *(_shown(found, row.unit) for found in values)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def verdict(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence: which system is best at what; where all are equal nobody is."""
    if len(figures) < 2:
        return f"Only {next(iter(figures))} was run: there is nothing to compare it with."
    best: dict[tuple[str, ...], list[str]] = {}
    equal: list[str] = []
    for row in ROWS:
        if row.better is None:
            continue
        values = {name: value(one, row.path) for name, one in figures.items()}
        known = {name: found for name, found in values.items() if found is not None}
        if not known:
            continue
        limit = min(known.values()) * (1.0 + EQUAL_WITHIN)
        leaders = tuple(name for name, found in known.items() if found <= limit)
        if len(leaders) == len(figures):
            equal.append(row.better)
        else:
            best.setdefault(leaders, []).append(row.better)
    parts = [
        f"{_listed(leaders)} {'is' if len(leaders) == 1 else 'are'} best at {_listed(what)}"
        for leaders, what in best.items()
    ]
    if equal:
        parts.append(f"all are equal in {_listed(equal)}")
    return "; ".join(parts) + f" (within {EQUAL_WITHIN:.0%} counts as equal)."


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _shown(found: float | None, unit: str) -> str:
    if found is None:
        return "–"
    match unit:
        case "s":
            return f"{found:,.3f} s" if found < 10 else f"{found:,.1f} s"
        case "bytes":
            return f"{found / 1e9:,.1f} GB"
        case _:
            return f"{found:,.0f}"
