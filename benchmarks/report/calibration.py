"""How close virtual time comes to published runs, as benchmarks.calibration.published found."""

import json
from pathlib import Path

from benchmarks.report import tables
from benchmarks.report.metrics import number

FILE = "calibration_published.json"


def table(folder: Path) -> str:
    """Measured and published, and in brackets the difference; "" where there is no such file."""
    file = folder / FILE
    if not file.exists():
        return ""
    runs = json.loads(file.read_text())["runs"]
    names = list(runs[0]["ratio"])
    rows = []
    for run in runs:
        entries = [
            f"{number(run['measured'][name])} of {number(run['published'][name])} "
            f"({100 * (run['ratio'][name] - 1):+.1f} %)"
            for name in names
        ]
        rows.append([f"{run['rate']:g}", *entries])
    header = ["applications per second", *(name.replace("_", " ") for name in names)]
    return tables.table(header, rows)
