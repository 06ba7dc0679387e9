"""Plots of this extension by itself: what its parts are worth, and how agents find their KV."""

from collections.abc import Sequence
from typing import Any

import matplotlib

from benchmarks.report.metrics import MAKESPAN, MEAN, P95, RETURNING
from benchmarks.report.results import Results
from benchmarks.report.tables import OWN, WHOLE, cells_with_variants

matplotlib.use("Agg")
from matplotlib import pyplot

RETURN_REASONS = {
    "resident": ("on the device all the time", "tab:green"),
    "uploaded_in_time": ("uploaded in time", "yellowgreen"),
    "load_hidden": ("load hidden by a forward", "darkseagreen"),
    "upload_late": ("upload late", "gold"),
    "not_uploaded": ("loaded at admission", "lightsteelblue"),
    "lost": ("computed again", "tab:red"),
}
"""What a decision log says of a returning turn: in words, and the colour."""


def ablation(results: Results) -> Any:
    """Each variant's multiples of the whole extension, one dot per cell; None without any."""
    cells = cells_with_variants(results)
    names = [
        name
        for name in results.systems(cells)
        if name in OWN and any(results.figures(cell, name) for cell in cells)
    ]
    if not names:
        return None
    metrics = (MEAN, P95, MAKESPAN, RETURNING)
    height = 1.2 + 0.34 * len(names)
    figure, panels = pyplot.subplots(1, len(metrics), figsize=(11, height), sharey=True)
    for axes, metric in zip(panels, metrics, strict=True):
        for number, cell in enumerate(cells):
            whole = results.value(cell, WHOLE, metric)
            dots = [
                (value / whole, row)
                for row, name in enumerate(names)
                if whole and (value := results.value(cell, name, metric)) is not None
            ]
            if dots:
                axes.plot(
                    *zip(*dots, strict=True),
                    linestyle="none",
                    marker="osD^vP*"[number % 7],
                    markersize=4.5,
                    alpha=0.8,
                    label=cell.replace("/equal-", " "),
                )
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_title(metric.title.removesuffix(", s"), fontsize=9)
        axes.set_xlabel("multiples of the whole")
        axes.grid(axis="y", linewidth=0.3)
    panels[0].set_yticks(range(len(names)), [_variant(name) for name in names])
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8)
    figure.tight_layout(rect=(0, 0.5 / height, 1, 1))
    return figure


def returns(results: Results, cells: Sequence[str]) -> Any:
    """How returning turns found their KV, as shares of each cell's; None without any."""
    found = {}
    for cell in cells:
        decisions = (results.figures(cell, WHOLE) or {}).get("decisions", {})
        counts = {reason: decisions.get(f"return.{reason}", 0) for reason in RETURN_REASONS}
        if sum(counts.values()):
            found[cell] = counts
    if not found:
        return None
    height = 1.3 + 0.4 * len(found)
    figure, axes = pyplot.subplots(figsize=(8, height))
    left = dict.fromkeys(found, 0.0)
    for reason, (words, colour) in RETURN_REASONS.items():
        shares = [counts[reason] / sum(counts.values()) for counts in found.values()]
        axes.barh(range(len(found)), shares, left=list(left.values()), color=colour, label=words)
        left = {cell: left[cell] + share for cell, share in zip(found, shares, strict=True)}
    turns = [sum(counts.values()) for counts in found.values()]
    names = [f"{cell}\n{count:,} returns" for cell, count in zip(found, turns, strict=True)]
    axes.set_yticks(range(len(found)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of returning turns")
    figure.legend(loc="lower center", ncols=len(RETURN_REASONS), fontsize=7)
    figure.tight_layout(rect=(0, 0.3 / height, 1, 1))
    return figure


def _variant(name: str) -> str:
    part = name.removeprefix(f"{WHOLE}-")
    if part in ("temporal", "spatial"):
        return f"{part} half alone"
    return f"without {part[3:]}" if part.startswith("no-") else f"with {part}"
