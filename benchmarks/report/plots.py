"""Plots beside the tables, as SVG that is the same bytes for the same results."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.matrix import sets, store
from benchmarks.matrix.store import Series
from benchmarks.matrix.systems import LOWER_BOUND
from benchmarks.report import parts, sweeps, timelines
from benchmarks.report.metrics import MEAN
from benchmarks.report.results import BEST_STOCK, ORACLE, Results, load, points

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


_SWEPT = {
    "load": "arrivals, % of HiCache's capacity",
    "noise": "gaussian scale on tool times",
    "noise-load": "gaussian scale on tool times",
    "host": "host tier, multiples of the device pool",
    "link": "speed of the link, multiples of the profile's",
}
"""Sets that vary a number, and what it is."""


def draw_all(folder: Path, results_folder: Path = store.FOLDER) -> Iterator[Path]:
    """Draws every plot that the results allow; yields the files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = load(results_folder)
    if "standard" in found:
        yield from _standard(found["standard"], folder, results_folder)
    if "standard" in found and (figure := parts.ablation(found["standard"])) is not None:
        yield _saved(figure, folder / "ablation.svg")
    if "sessions" in found:
        sessions = found["sessions"]
        if (figure := parts.returns(sessions, sessions.cells)) is not None:
            yield _saved(figure, folder / "returns.svg")
    for name, what in _SWEPT.items():
        for group in found[name].groups if name in found else ():
            if (figure := mean_against_swept(found[name], group, what)) is not None:
                yield _saved(figure, folder / f"{group}.svg")


def _standard(standard: Results, folder: Path, results_folder: Path) -> Iterator[Path]:
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
    names = [*results.contenders(cells), LOWER_BOUND, BEST_STOCK, ORACLE]
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


def mean_against_swept(results: Results, group: str, what: str) -> Any:
    """Ratios to best-stock against what the set varies, and the range of the seeds as an area.

    None where there are no two points.
    """
    by_point = points(results.complete(results.groups[group]))
    values = [float(point.strip("%x")) for point in by_point]
    names = results.systems(itertools.chain(*by_point.values()))
    names.sort(key=lambda name: name in _EMPHASIS)
    if len(values) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    ends: dict[str, float] = {BEST_STOCK: 1.0}
    axes.plot(values, [1.0] * len(values), **_EMPHASIS[BEST_STOCK])
    for name in names:
        entries = [sweeps.ratios(results, name, MEAN, seeds) for seeds in by_point.values()]
        known = [(value, e) for value, e in zip(values, entries, strict=True) if e is not None]
        if not known:
            continue
        shade = _shade(results, results.groups[group], name)
        style = _EMPHASIS.get(name, {"color": shade, "linewidth": 0.8})
        at = [value for value, _ in known]
        axes.plot(at, [e.mean for _, e in known], **style)
        if name in _EMPHASIS:
            least, most = [e.least for _, e in known], [e.most for _, e in known]
            axes.fill_between(at, least, most, color=style["color"], alpha=0.15, linewidth=0)
        if at[-1] == values[-1]:
            ends[name] = known[-1][1].mean
    if min(values) > 0 and max(values) >= 4 * min(values):
        axes.set_xscale("log")
    axes.set(xlabel=what, ylabel="end to end, mean, multiples of best-stock", title=group)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    _name_ends(axes, values[-1], ends)
    figure.tight_layout()
    return figure


def _shade(results: Results, cells: list[str], name: str) -> str:
    records = (results.records.get((cell, name)) for cell in cells)
    stock = any(record is not None and record.setting.get("stock") for record in records)
    return "silver" if stock else "lightsteelblue"


def _name_ends(axes: Any, at: float, ends: dict[str, float]) -> None:
    """Names right of the lines' ends, moved apart where they would overlap."""
    name_at, right = 1.12 * at, 1.9 * at
    if axes.get_xscale() == "linear":
        width = at - axes.dataLim.x0
        name_at, right = at + 0.04 * width, at + 0.3 * width
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
            xytext=(name_at, height),
            fontsize=7,
            va="center",
            color=_EMPHASIS.get(name, {}).get("color", "dimgray"),
            arrowprops={"arrowstyle": "-", "linewidth": 0.3, "color": "silver"},
        )
    axes.set_xlim(right=right)


def _saved(figure: Any, file: Path) -> Path:
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return file
