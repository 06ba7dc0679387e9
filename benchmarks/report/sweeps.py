"""Tables of sets that vary one thing, some with several seeds."""

from benchmarks.matrix.systems import LOWER_BOUND
from benchmarks.report.metrics import MEAN, Metric, number
from benchmarks.report.ranking import geometric_mean, kendall_tau
from benchmarks.report.results import BEST_STOCK, DERIVED, Results, is_oracle, natural
from benchmarks.report.tables import table

AS_CALIBRATED = "as-calibrated"


def points(cells: list[str]) -> dict[str, list[str]]:
    """Cells of a group by what is varied; cells that differ in the seed only go together."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        variant = cell.partition("/")[2]
        point = variant.partition("-seed-")[0] if "-seed-" in variant else variant
        found.setdefault(point, []).append(cell)
    return found


def sweep(results: Results, group: str, metric: Metric) -> str:
    """Systems against points: the geometric mean over seeds of the ratio to best-stock.

    In brackets the smallest and the largest of the seeds. A system without a result for every seed
    of a point has no entry there.
    """
    cells = results.groups[group]
    by_point = points(cells)
    rows = []
    for system in [*results.systems(cells), DERIVED[1]]:
        entries = [_entry(results, system, metric, seeds) for seeds in by_point.values()]
        if any(entry != "–" for entry in entries):
            rows.append([f"`{system}`", *entries])
    if rows:
        base = [_mean_value(results, metric, seeds) for seeds in by_point.values()]
        rows.append([f"*{BEST_STOCK}*, s", *base])
    return table(["system", *by_point], rows)


def _entry(results: Results, system: str, metric: Metric, seeds: list[str]) -> str:
    ratios = [results.ratio(cell, system, metric) for cell in seeds]
    known = [ratio for ratio in ratios if ratio is not None]
    if len(known) < len(seeds) or not known or min(known) <= 0:
        return "–"
    text = f"{geometric_mean(known):.2f}"
    return text if len(known) == 1 else f"{text} ({min(known):.2f}–{max(known):.2f})"


def _mean_value(results: Results, metric: Metric, seeds: list[str]) -> str:
    values = [results.value(cell, BEST_STOCK, metric) for cell in seeds]
    known = [value for value in values if value]
    return number(geometric_mean(known)) if known else "–"


def against(results: Results, cells: list[str], reference: str, metric: Metric = MEAN) -> str:
    """Every system's mean over the cells, and its gain over ``reference`` and over best-stock."""
    rows = []
    for system in [*results.systems(cells), *DERIVED]:
        values = [results.value(cell, system, metric) for cell in cells]
        others = [results.value(cell, reference, metric) for cell in cells]
        own = [results.ratio(cell, system, metric) for cell in cells]
        if not all(values) or not all(others) or not all(own):
            continue
        ratios = [a / b for a, b in zip(values, others, strict=True)]
        rows.append(
            [
                f"`{system}`",
                f"{number(geometric_mean(values))} ({number(min(values))}–{number(max(values))})",
                f"{100 * (geometric_mean(ratios) - 1):+.0f} %",
                f"{100 * (geometric_mean(own) - 1):+.0f} %",
            ]
        )
    return table(
        ["system", metric.title, f"against `{reference}`", f"against *{BEST_STOCK}*"], rows
    )


def sensitivity(results: Results, metric: Metric = MEAN) -> str:
    """Whether another machine speed gives another ranking of the systems."""
    rows = []
    for group, cells in results.groups.items():
        base = f"{group}/{AS_CALIBRATED}"
        if base not in cells:
            continue
        for cell in sorted(cells, key=lambda name: (name != base, natural(name))):
            systems = [
                name
                for name in results.systems([cell])
                if name != LOWER_BOUND
                and not is_oracle(name)
                and results.value(base, name, metric) is not None
                and results.value(cell, name, metric) is not None
            ]
            if not systems:
                continue
            values = {name: results.value(cell, name, metric) for name in systems}
            tau = kendall_tau(
                [results.value(base, name, metric) for name in systems], list(values.values())
            )
            ours = results.ratio(cell, "tokencake", metric)
            rows.append(
                [
                    f"`{cell.removeprefix('sensitivity-')}`",
                    f"`{metric.best(values)}`",
                    f"{tau:.2f}",
                    "–" if ours is None else f"{ours:.2f}",
                    str(len(systems)),
                ]
            )
    header = [
        "machine",
        "best",
        "Kendall's tau with the first",
        "tokencake / best-stock",
        "systems",
    ]
    return table(header, rows)
