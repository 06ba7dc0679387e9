"""What is committed of bounds against what is committed of runs."""

import pytest

from benchmarks.matrix import sets, store
from benchmarks.matrix.execute import execute
from benchmarks.matrix.store import Record
from benchmarks.matrix.systems import LOWER_BOUND

ROUNDING_S = 2e-6
CHEAP = [
    ("check", "check/code_writer"),
    ("check", "check/deep_research"),
    ("standard", "code_writer/equal-0.2"),
    ("standard", "agentinfer_swebench/lanes-8"),
]


def records(set_name: str) -> dict[tuple[str, str], Record]:
    return {record.key: record for record in store.read(set_name) if record.figures is not None}


def times_s(record: Record) -> dict[str, float]:
    assert record.figures is not None
    spread = record.figures["end_to_end_s"]
    return {
        "mean": spread["mean"],
        "p95": spread["p95"],
        "makespan": record.figures["makespan_s"],
    }


@pytest.mark.parametrize("set_name", sets.SETS)
def test_no_committed_run_beats_its_bound(set_name: str) -> None:
    known = records(set_name)
    bounds = {cell: times_s(r) for (cell, system), r in known.items() if system == LOWER_BOUND}
    beaten = [
        f"{cell} {system}: {figure} {found} < {bounds[cell][figure]}"
        for (cell, system), record in known.items()
        if cell in bounds
        for figure, found in times_s(record).items()
        if found < bounds[cell][figure] - ROUNDING_S
    ]
    assert bounds
    assert not beaten


@pytest.mark.parametrize(("set_name", "name"), CHEAP)
def test_a_committed_bound_comes_out_again(set_name: str, name: str) -> None:
    cell = next(cell for cell in sets.cells(set_name) if cell.id == name)
    assert execute(cell, LOWER_BOUND).figures == records(set_name)[name, LOWER_BOUND].figures
