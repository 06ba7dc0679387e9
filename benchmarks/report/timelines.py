"""Plots of what happened inside single runs."""

from typing import Any

from matplotlib import pyplot

from benchmarks.matrix.store import Series

OCCUPANCY = {
    "running": ("tab:blue", "in use"),
    "soon": ("lightskyblue", "wanted at once"),
    "idle": ("tab:orange", "wanted later"),
    "dead": ("tab:red", "wanted by nobody"),
}
"""States of device memory, from the bottom up: colours and names."""

GANTT = (
    ("queued_s", "admitted_s", "tab:red", "waits in the queue"),
    ("admitted_s", "first_token_s", "tab:purple", "prefill"),
    ("first_token_s", "finished_s", "tab:blue", "decode"),
    ("finished_s", "tool_end_s", "lightgray", "tool call"),
)
"""Parts of a request: from, to, colour and name."""


def occupancy(cell: str, runs: dict[str, Series]) -> Any:
    """Share of the pool over time by state, one panel a system, on the same axes."""
    figure, panels = pyplot.subplots(
        len(runs), 1, sharex=True, sharey=True, squeeze=False, figsize=(8, 2.2 * len(runs) + 0.6)
    )
    for axes, (name, run) in zip(panels[:, 0], runs.items(), strict=True):
        series = run.occupancy
        axes.stackplot(
            series["time_s"],
            [[100 * share for share in series[state]] for state in OCCUPANCY],
            colors=[colour for colour, _ in OCCUPANCY.values()],
            labels=[name for _, name in OCCUPANCY.values()],
            step="post",
            linewidth=0,
        )
        axes.set(ylabel="of the pool, %", title=f"{cell}, {name}", ylim=(0, 100))
    panels[-1, 0].legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=len(OCCUPANCY), fontsize=7
    )
    panels[-1, 0].set_xlabel("s")
    panels[-1, 0].set_xlim(left=0)
    figure.tight_layout()
    return figure


def gantt(cell: str, runs: dict[str, Series]) -> Any:
    """What the requests of one application wait for, one panel a system, on the same time axis."""
    rows = max(len(run.gantt) for run in runs.values())
    figure, panels = pyplot.subplots(
        len(runs), 1, sharex=True, squeeze=False, figsize=(8, (0.13 * rows + 0.8) * len(runs))
    )
    for axes, (name, run) in zip(panels[:, 0], runs.items(), strict=True):
        begin_s = min(row["queued_s"] for row in run.gantt)
        for start, end, colour, label in GANTT:
            bars = [(at, row) for at, row in enumerate(run.gantt) if row.get(end) is not None]
            axes.barh(
                [at for at, _ in bars],
                [row[end] - row[start] for _, row in bars],
                left=[row[start] - begin_s for _, row in bars],
                color=colour,
                label=label,
                height=0.8,
                linewidth=0,
            )
        axes.set_yticks(range(len(run.gantt)), [row["agent"] for row in run.gantt], fontsize=5)
        axes.invert_yaxis()
        axes.set_title(f"{cell}, {name}")
    panels[0, 0].legend(loc="lower left", fontsize=7)
    panels[-1, 0].set_xlabel("s since the application began")
    figure.tight_layout()
    return figure
