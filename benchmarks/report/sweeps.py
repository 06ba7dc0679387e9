"""Tables of sets that vary one thing, some with several seeds."""

from dataclasses import dataclass

from benchmarks.matrix.systems import LOWER_BOUND
from benchmarks.report.metrics import MEAN, Metric, number
from benchmarks.report.ranking import geometric_mean, kendall_tau
from benchmarks.report.results import BEST_STOCK, DERIVED, Results, is_oracle, natural, points
from benchmarks.report.tables import table

AS_CALIBRATED = "as-calibrated"


@dataclass(frozen=True, slots=True)
class Ratios:
    """A system's multiples of best-stock, each seed's against the best-stock of that seed."""

    mean: float
    least: float
    most: float
    seeds: int

    def __str__(self) -> str:
        if self.seeds == 1:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ({self.least:.2f}–{self.most:.2f})"


def ratios(results: Results, system: str, metric: Metric, seeds: list[str]) -> Ratios | None:
    """None for a system without a result for every seed: the others' would not compare."""
    known = [results.ratio(cell, system, metric) for cell in seeds]
    given = [ratio for ratio in known if ratio is not None and ratio > 0]
    if not given or len(given) < len(known):
        return None
    return Ratios(geometric_mean(given), min(given), max(given), len(given))


def sweep(results: Results, group: str, metric: Metric) -> str:
    """Systems against points: the geometric mean over seeds of the ratio to best-stock.

    In brackets the smallest and the largest of the seeds.
    """
    cells = results.complete(results.groups[group])
    by_point = points(cells)
    rows = []
    for system in [*results.systems(cells), DERIVED[1]]:
        entries = [ratios(results, system, metric, seeds) for seeds in by_point.values()]
        if any(entries):
            rows.append([f"`{system}`", *("–" if e is None else str(e) for e in entries)])
    if rows:
        base = [_mean_value(results, metric, seeds) for seeds in by_point.values()]
        rows.append([f"*{BEST_STOCK}*, s", *base])
    header = [
        point if len(seeds) == 1 else f"{point}, {len(seeds)} seeds"
        for point, seeds in by_point.items()
    ]
    return table(["system", *header], rows)


def _mean_value(results: Results, metric: Metric, seeds: list[str]) -> str:
    values = [results.value(cell, BEST_STOCK, metric) for cell in seeds]
    known = [value for value in values if value]
    return number(geometric_mean(known)) if known else "–"


def stock(results: Results) -> str:
    """Of what best-stock is the best here."""
    return ", ".join(f"`{system}`" for system in results.stock)


def against(results: Results, cells: list[str], reference: str, metric: Metric = MEAN) -> str:
    """Every system's mean over the cells, and its gain over ``reference`` and over best-stock."""
    cells = results.complete(cells)
    rows = []
    for system in [*results.systems(cells), *DERIVED]:
        values = [results.value(cell, system, metric) for cell in cells]
        others = [results.value(cell, reference, metric) for cell in cells]
        own = [results.ratio(cell, system, metric) for cell in cells]
        if not all(values) or not all(others) or not all(own):
            continue
        gains = [a / b for a, b in zip(values, others, strict=True)]
        rows.append(
            [
                f"`{system}`",
                f"{number(geometric_mean(values))} ({number(min(values))}–{number(max(values))})",
                _gain(gains),
                _gain(own),
            ]
        )
    return table(
        ["system", metric.title, f"against `{reference}`", f"against *{BEST_STOCK}*"], rows
    )


def _gain(of: list[float]) -> str:
    mean, least, most = (100 * (value - 1) for value in (geometric_mean(of), min(of), max(of)))
    spread = "" if len(of) == 1 else f" ({least:+.0f} to {most:+.0f})"
    return f"{mean:+.0f} %{spread}"


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
