"""Each part of this extension can be turned off, and has done something until then."""

import msgspec
import pytest

from benchmarks.matrix import sets, systems
from benchmarks.matrix.execute import execute
from benchmarks.matrix.workloads import WorkloadSpec
from tokencake_sglang.timewarp.forks import run_in_fork

# Smaller than the committed slice, and of so little memory that every part has work.
CELL = msgspec.structs.replace(
    next(sets.check()),
    workload=WorkloadSpec(source="code_writer", applications=3, arrivals="equal", rate=2.0),
    pool_tokens=16_384,
    host_tokens=49_152,
)


@pytest.fixture(scope="module")
def figures(forking_process):
    """Figures of a system on the cell."""
    return lambda system: forking_process(run_in_fork, execute, CELL, system).figures


@pytest.fixture(scope="module")
def whole(figures) -> dict:
    return figures("tokencake")


@pytest.mark.parametrize("part", ["order", "reopening", "eviction", "uploads"])
def test_without_it_the_same_work_takes_another_course(figures, whole, part):
    left = figures(f"tokencake-no-{part}")
    assert left["output_tokens"] == whole["output_tokens"]
    assert (left["application_s"], left["decisions"]) != (
        whole["application_s"],
        whole["decisions"],
    )


def test_every_part_has_a_system():
    from typing import get_args

    from tokencake_sglang.config import Part

    assert {f"tokencake-no-{part}" for part in get_args(Part)} <= systems.VARIANTS.keys()
