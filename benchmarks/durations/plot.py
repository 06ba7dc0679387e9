"""Calibration: how often what came lay below the predicted quantile."""

import itertools
from pathlib import Path
from typing import Any

from benchmarks.durations.scores import ESTIMATES, NONE, OURS, RANKS
from benchmarks.report.plots import _saved, pyplot

SHOWN = (NONE, "σ 0.25", "σ 1")


def draw(results: dict[str, Any], file: Path) -> Path:
    """One panel per kind of estimates, one line per trace; the diagonal is perfect."""
    assert set(SHOWN) <= {kind.name for kind in ESTIMATES}
    figure, panels = pyplot.subplots(1, len(SHOWN), figsize=(9, 3.4), sharey=True)
    levels = [number / RANKS for number in range(RANKS + 1)]
    for axes, kind in zip(panels, SHOWN, strict=True):
        axes.plot((0, 1), (0, 1), color="silver", linewidth=0.8)
        for name, trace in results["traces"].items():
            ranks = trace["estimates"][kind][OURS]["ranks"]
            below = itertools.accumulate(ranks, initial=0)
            style = "--" if trace["drawn"] else "-"
            shares = [count / sum(ranks) for count in below]
            axes.plot(levels, shares, style, linewidth=1.2, label=name)
        title = "no estimates" if kind == NONE else f"estimates: {kind}"
        axes.set(title=title, xlabel="predicted probability", aspect="equal")
    panels[0].set_ylabel("share of calls below")
    panels[0].legend(fontsize=6, loc="upper left")
    figure.tight_layout()
    return _saved(figure, file)
