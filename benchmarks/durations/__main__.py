"""Scores the duration model on all traces; about two minutes.

python -m benchmarks.durations
"""

import argparse
import json
from pathlib import Path

from benchmarks.durations.scores import beaten, compare
from benchmarks.durations.table import calibration, table
from benchmarks.durations.traces import DRAWN, REAL
from benchmarks.matrix import store

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = store.FOLDER.parent / "durations.json"
PLOT = REPOSITORY / "docs" / "plots" / "durations.svg"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durations", description=__doc__)
    parser.add_argument("--only", help="one trace; nothing is written")
    parser.add_argument("--drawn", action="store_true", help="only draw the plot again")
    options = parser.parse_args()
    if options.drawn:
        results = json.loads(RESULTS.read_text())
    else:
        traces = [make() for make in (*REAL, *DRAWN)]
        chosen = [t for t in traces if options.only in (None, t.name)]
        results = {"traces": {trace.name: compare(trace) for trace in chosen}}
    print(table(results), table(results, "log_crps"), calibration(results), sep="\n\n")
    for name, trace in results["traces"].items():
        for kind, scores in trace["estimates"].items():
            for metric in ("crps_s", "log_crps"):
                lost = [rival for rival, won in beaten(scores, metric).items() if not won]
                if lost:
                    print(f"{metric}: not better than {', '.join(lost)} on {name}, {kind}")
    if options.only is None:
        from benchmarks.durations.plot import draw

        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        draw(results, PLOT)


if __name__ == "__main__":
    main()
