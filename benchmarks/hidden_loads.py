"""What is loaded only once its request is admitted, and why; and what hiding it all could bring.

Sixteen coding sessions with the exact length of every call declared. Each cell is run twice with this
extension: as it is, with a decision log, and with a link a thousand times as fast, so that nothing is
left to hide. It needs the whole data set for the cells that are drawn from it, and some minutes a cell.

    python -m benchmarks.hidden_loads --output benchmarks/results/hidden_loads.json
"""

import argparse
import fnmatch
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from benchmarks.first_token_floor import CELLS
from benchmarks.matrix import sets
from benchmarks.matrix.cells import Cell
from benchmarks.matrix.execute import execute
from tokencake_sglang.timewarp.forks import map_in_forks

SYSTEM = "tokencake"
FREE = 1000.0
"""With a link so many times as fast no copy is waited for."""


def why(detail: dict[str, Any]) -> str:
    """What kept a turn's KV from being back before it was admitted, from its ``return`` record."""
    if (kept_back := detail.get("upload_kept_back")) is not None:
        return kept_back
    return "under_way" if "upload_due_s" in detail else "not_due"


def tally(returns: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Of a run's ``return`` records: turns and tokens loaded at admission, by what kept them back."""
    turns: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for record in returns:
        outcomes[record["reason"]] += 1
        if loaded := record["detail"]["loaded_at_admission_tokens"]:
            turns[why(record["detail"])] += 1
            tokens[why(record["detail"])] += loaded
    return {
        "outcomes": dict(sorted(outcomes.items())),
        "loaded_at_admission": {
            reason: {"turns": turns[reason], "tokens": tokens[reason]} for reason in sorted(turns)
        },
    }


def as_it_is(cell: Cell) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "decisions.jsonl"
        outcome = execute(cell, SYSTEM, flags=("--tokencake-decision-log", str(log)))
        records = [json.loads(line) for line in log.read_text().splitlines()]
    transfers = outcome.figures["transfers"]
    return {
        **tally(record for record in records if record["action"] == "return"),
        "forwards_wait_s": transfers["exposed_wait_s"],
        "copies_take_s": transfers["to_device_busy_s"],
        "makespan_s": outcome.figures["makespan_s"],
    }


def with_free_copies(cell: Cell) -> dict[str, float]:
    """First tokens of returning turns, in seconds."""
    outcome = execute(replace(cell, link_scale=FREE), SYSTEM)
    return outcome.figures["first_token_s"]["returning"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, help="also write the figures there, as JSON")
    arguments = parser.parse_args()
    cells = [
        cell
        for cell in sets.cells("sessions")
        if any(fnmatch.fnmatch(cell.id, pattern) for pattern in CELLS)
    ]
    runs = [(function, cell) for cell in cells for function in (as_it_is, with_free_copies)]
    found = map_in_forks(_call, runs, processes=arguments.jobs)
    results = {
        cell.id: {**measured, "free_copies_first_token_s": free}
        for cell, measured, free in zip(cells, found[::2], found[1::2], strict=True)
    }
    text = json.dumps(results, indent=2) + "\n"
    if arguments.output is not None:
        arguments.output.write_text(text)
    print(text, end="")


def _call(function: Any, cell: Cell) -> Any:
    return function(cell)


if __name__ == "__main__":
    main()
