"""Plots beside the tables, as SVG that is the same bytes for the same results."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.matrix import sets, store
from benchmarks.matrix.store import Series
from benchmarks.matrix.systems import LOWER_BOUND
from benchmarks.report import timelines
from benchmarks.report.metrics import MEAN
from benchmarks.report.results import BEST_STOCK, ORACLE, Results, load

matplotlib.use("Agg")
from matplotlib import pyplot

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "tokencake",
        "svg.fonttype": "none",
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)

_EMPHASIS: dict[str, dict[str, Any]] = {
    BEST_STOCK: {"color": "black", "linewidth": 2.2, "marker": "o"},
    "tokencake": {"color": "tab:red", "linewidth": 2.2, "marker": "o"},
    ORACLE: {"color": "tab:green", "linewidth": 1.8, "linestyle": "--"},
    LOWER_BOUND: {"color": "tab:gray", "linewidth": 1.2, "linestyle": ":"},
}


def draw_all(folder: Path, results_folder: Path = store.FOLDER) -> Iterator[Path]:
    """Draws every plot that the results allow; yields the files."""
    folder.mkdir(parents=True, exist_ok=True)
    standard = load(results_folder).get("standard")
    if standard is None:
        return
    for group, cells in standard.groups.items():
        rated = [cell for cell in cells if "/equal-" in cell]
        if len(rated) > 1:
            yield _saved(mean_against_rate(standard, group, rated), folder / f"{group}-mean.svg")
    kept = {series.key: series for series in store.read("standard", Series, results_folder)}
    for cell in dict.fromkeys(cell for cell, _ in sets.PLOTTED):
        group = cell.partition("/")[0]
        pair = {
            name: kept[cell, name] for of, name in sets.PLOTTED if (of, name) in kept and of == cell
        }
        if pair:
            yield _saved(timelines.occupancy(cell, pair), folder / f"{group}-occupancy.svg")
            yield _saved(timelines.gantt(cell, pair), folder / f"{group}-gantt.svg")


def mean_against_rate(results: Results, group: str, cells: list[str]) -> Any:
    """Every system a thin line with its name at its end, the ones that matter in colour."""
    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    rates = [float(cell.partition("equal-")[2]) for cell in cells]
    names = [*results.systems(cells), LOWER_BOUND, BEST_STOCK, ORACLE]
    names.sort(key=lambda name: name in _EMPHASIS)
    ends: dict[str, float] = {}
    for name in names:
        points = [
            (rate, value)
            for rate, cell in zip(rates, cells, strict=True)
            if (value := results.value(cell, name, MEAN)) is not None
        ]
        if not points:
            continue
        style = _EMPHASIS.get(name, {"color": _shade(results, cells, name), "linewidth": 0.8})
        axes.plot(*zip(*points, strict=True), **style)
        if points[-1][0] == rates[-1]:
            ends[name] = points[-1][1]
    axes.set(xscale="log", xlabel="applications per second", ylabel=MEAN.title, title=group)
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    _name_ends(axes, rates[-1], ends)
    figure.tight_layout()
    return figure


def _shade(results: Results, cells: list[str], name: str) -> str:
    records = (results.records.get((cell, name)) for cell in cells)
    stock = any(record is not None and record.setting.get("stock") for record in records)
    return "silver" if stock else "lightsteelblue"


def _name_ends(axes: Any, at: float, ends: dict[str, float]) -> None:
    """Names right of the lines' ends, moved apart where they would overlap."""
    top = axes.get_ylim()[1]
    least = 0.032 * top
    ordered = sorted(ends.items(), key=lambda item: item[1])
    heights = list(itertools.accumulate((v for _, v in ordered), lambda h, v: max(v, h + least)))
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], top - least * (len(heights) - 1 - index))
    for (name, value), height in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            xy=(at, value),
            xytext=(at * 1.12, height),
            fontsize=7,
            va="center",
            color=_EMPHASIS.get(name, {}).get("color", "dimgray"),
            arrowprops={"arrowstyle": "-", "linewidth": 0.3, "color": "silver"},
        )
    axes.set_xlim(right=at * 1.9)


def _saved(figure: Any, file: Path) -> Path:
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return file
