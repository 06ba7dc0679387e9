"""How soon a returning turn could have its first token if nobody else were on the server.

Of each turn that follows one of its own application: one forward over what nobody has computed
before, with everything else on the device. No order, no eviction and no copy can be better. It
needs the whole data set for the cells that are drawn from it.

    python -m benchmarks.first_token_floor --output benchmarks/results/first_token_floor.json
"""

import argparse
import fnmatch
import json
from pathlib import Path

from benchmarks.matrix import sets
from benchmarks.matrix.cells import Cell
from benchmarks.matrix.execute import cost_model
from benchmarks.matrix.workloads import build
from tokencake_sglang.replay.least_work import least_work
from tokencake_sglang.replay.quantiles import mean, quantile
from tokencake_sglang.timewarp.cost import Work

CELLS = ("claude_code-16/exact", "claude_code-16-drawn/*")


def floor(cell: Cell) -> dict[str, float]:
    """Seconds: the mean and quantiles over all returning turns of the cell."""
    workload, cost = build(cell.workload), cost_model(cell)
    least = least_work(workload)
    alone_s = []
    for request in workload.requests:
        before = {workload.by_id[name].application for name in request.wait_for}
        if request.application in before:
            new_tokens = least.requests[request.request_id].new_tokens
            context_tokens = request.prompt_length - new_tokens
            alone_s.append(cost.forward_s([Work(new_tokens, context_tokens)]))
    return {
        "turns": len(alone_s),
        "mean": round(mean(alone_s), 6),
        "p50": round(quantile(alone_s, 0.5), 6),
        "p95": round(quantile(alone_s, 0.95), 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="also write the figures there, as JSON")
    arguments = parser.parse_args()
    floors = {
        cell.id: floor(cell)
        for cell in sets.cells("sessions")
        if any(fnmatch.fnmatch(cell.id, pattern) for pattern in CELLS)
    }
    text = json.dumps(floors, indent=2) + "\n"
    if arguments.output is not None:
        arguments.output.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
