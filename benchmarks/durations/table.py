"""The results as tables of Markdown."""

from typing import Any

from benchmarks.durations.scores import CDF, EWMA, OURS, PAPER, TODAY

COLUMNS = (OURS, PAPER, EWMA, CDF, TODAY)


def table(results: dict[str, Any], metric: str = "crps_s") -> str:
    """A row per trace and kind of estimates; the best is bold."""
    rows = [f"| trace | estimates | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    for name, trace in results["traces"].items():
        for kind, scores in trace["estimates"].items():
            values = [scores[column][metric] for column in COLUMNS]
            cells = [f"**{v:.3g}**" if v == min(values) else f"{v:.3g}" for v in values]
            rows.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    return "\n".join(rows)


def calibration(results: dict[str, Any]) -> str:
    """The share of calls between the predicted 10 % and 90 % quantiles; 0.8 is perfect."""
    kinds = list(next(iter(results["traces"].values()))["estimates"])
    rows = [f"| trace | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    for name, trace in results["traces"].items():
        shares = [trace["estimates"][kind][OURS]["between_10_and_90_percent"] for kind in kinds]
        rows.append(f"| {name} | {' | '.join(f'{share:.2f}' for share in shares)} |")
    return "\n".join(rows)
