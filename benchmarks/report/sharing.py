"""Tables of the set ``sharing``: what tenants, critical agents and remaining paths get.

Entries over several seeds are arithmetic means, with the smallest and the largest in brackets;
ratios are taken seed by seed and averaged geometrically.
"""

from collections.abc import Callable, Sequence

from benchmarks.report.metrics import MAKESPAN, MEAN, P95, RETURNING, Metric, number
from benchmarks.report.ranking import geometric_mean
from benchmarks.report.results import Results, points
from benchmarks.report.tables import table

ALONE = "isolation/alone"
NO_PATHS = "tokencake-no-paths"
"""What remaining paths are worth is told against it."""


def _of_tenant(name: str, *path: str) -> Metric:
    return Metric("", ("tenants", "of", name, *path))


def _first_token(whose: str, what: str) -> Metric:
    return Metric("", ("critical_first_token_s", whose, what))


def _per_cent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


_Columns = Sequence[tuple[str, Metric, Callable[[float | None], str]]]

TENANTS: _Columns = (
    ("all, end to end, mean, s", MEAN, number),
    ("a's", _of_tenant("a", "end_to_end_s", "mean"), number),
    ("b's", _of_tenant("b", "end_to_end_s", "mean"), number),
    ("makespan, s", MAKESPAN, number),
    ("returning first token, mean, s", RETURNING, number),
    ("both busy, s", Metric("", ("tenants", "contended_s")), number),
    ("a's share of what both held", _of_tenant("a", "contended", "share"), _per_cent),
    ("b's part of the pool, mean", _of_tenant("b", "contended", "pool_mean"), _per_cent),
    ("at most", _of_tenant("b", "contended", "pool_most"), _per_cent),
)
"""Two tenants of the same applications."""

RESERVE: _Columns = (
    ("critical, first token, mean, s", _first_token("critical", "mean"), number),
    ("P95", _first_token("critical", "p95"), number),
    ("others, mean, s", _first_token("others", "mean"), number),
    ("P95", _first_token("others", "p95"), number),
    ("end to end, mean, s", MEAN, number),
    ("P95", P95, number),
    ("makespan, s", MAKESPAN, number),
)
"""Returning turns of critical agents, and of others."""


def by_system(results: Results, group: str, columns: _Columns) -> str:
    """Systems against columns, over the group's seeds; a system that lacks a seed is left out."""
    cells = results.groups.get(group, [])
    rows = []
    for system in results.systems(cells):
        entries = []
        for _, metric, form in columns:
            values = [results.value(cell, system, metric) for cell in cells]
            entries.append(_spread([v for v in values if v is not None], len(cells), form))
        if any(entries):
            rows.append([f"`{system}`", *(entry or "–" for entry in entries)])
    return table(["system", *(title for title, _, _ in columns)], rows)


def isolation(results: Results) -> str:
    """The light tenant beside the heavy one, against the same system with nobody else."""
    mean, heavy = (_of_tenant(name, "end_to_end_s", "mean") for name in ("light", "heavy"))
    first, first_p95 = (_of_tenant("light", "first_token_s", what) for what in ("mean", "p95"))
    beside = [cell for cell in results.groups.get("isolation", []) if cell != ALONE]
    rows = []
    for system in results.systems(beside):
        alone_s = results.value(ALONE, system, mean)
        times_s = [results.value(cell, system, mean) for cell in beside]
        known = [seconds for seconds in times_s if seconds is not None]
        if alone_s is None or len(known) < len(beside):
            continue

        def entry(metric: Metric, system: str = system) -> str:
            values = [results.value(cell, system, metric) for cell in beside]
            return _spread([v for v in values if v is not None], len(beside), number)

        rows.append(
            [
                f"`{system}`",
                entry(mean),
                number(alone_s),
                f"{geometric_mean([seconds / alone_s for seconds in known]):.1f}",
                entry(first),
                entry(first_p95),
                number(results.value(ALONE, system, first)),
                entry(heavy),
            ]
        )
    header = [
        "system",
        "light, end to end, mean, s",
        "alone, s",
        "slowdown",
        "first token, mean, s",
        "P95",
        "alone, mean, s",
        "heavy, end to end, mean, s",
    ]
    return table(header, rows)


def paths(results: Results, metric: Metric) -> str:
    """Multiples of the extension that knows nothing of remaining paths, over each workload's seeds."""
    by_workload = points(results.groups.get("paths", []))
    cells = [cell for seeds in by_workload.values() for cell in seeds]
    rows = []
    for system in results.systems(cells):
        if system == NO_PATHS:
            continue
        entries = [_ratios(results, system, metric, seeds) for seeds in by_workload.values()]
        if any(entries):
            rows.append([f"`{system}`", *(entry or "–" for entry in entries)])
    if rows:
        base = []
        for seeds in by_workload.values():
            values = [results.value(cell, NO_PATHS, metric) for cell in seeds]
            base.append(_spread([v for v in values if v is not None], len(seeds), number) or "–")
        rows.append([f"`{NO_PATHS}`, s", *base])
    return table(["system", *by_workload], rows)


def _ratios(results: Results, system: str, metric: Metric, seeds: Sequence[str]) -> str:
    found = []
    for cell in seeds:
        mine, base = (results.value(cell, name, metric) for name in (system, NO_PATHS))
        if mine is not None and base:
            found.append(mine / base)
    if len(found) < len(seeds) or not found:
        return ""
    mean, least, most = (
        f"{value:.3f}" for value in (geometric_mean(found), min(found), max(found))
    )
    return mean if least == most else f"{mean} ({least}–{most})"


def _spread(values: Sequence[float], seeds: int, form: Callable[[float | None], str]) -> str:
    """The mean and in brackets the range; empty where a seed has no value."""
    if not values or len(values) < seeds:
        return ""
    text = form(sum(values) / len(values))
    least, most = form(min(values)), form(max(values))
    return text if least == most else f"{text} ({least}–{most})"
