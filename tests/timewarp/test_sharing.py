"""Tenants, declared graphs and critical agents in whole runs, each in a process of its own."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from benchmarks.matrix import sets
from benchmarks.matrix.execute import execute
from benchmarks.matrix.workloads import WorkloadSpec
from benchmarks.workloads import fan_out
from tests.timewarp.replays import tenants_and_the_pool, what_small_declares
from tokencake_sglang.timewarp.forks import run_in_fork

pytestmark = pytest.mark.slow

CELL = msgspec.structs.replace(
    next(sets.check()),
    workload=WorkloadSpec(
        source="code_writer", applications=4, arrivals="equal", rate=2.0, tenants="a,b"
    ),
    pool_tokens=16_384,
    host_tokens=163_840,
)


@pytest.fixture(scope="module")
def figures(forking_process: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    def figures(cell: Any, system: str) -> dict[str, Any]:
        return forking_process(run_in_fork, execute, cell, system).figures

    return figures


def test_what_all_tenants_hold_is_what_runs(forking_process: Callable[..., Any]) -> None:
    """Both are looked at in the same turns; what is shared between tenants is shared by nobody."""
    pairs = forking_process(run_in_fork, tenants_and_the_pool)
    assert len(pairs) > 50
    assert all(abs(held - running) <= 64 for held, running in pairs), pairs
    assert max(running for _, running in pairs) > 8_000


def test_tags_name_tenants_unless_the_system_is_not_to_know_them(figures: Any) -> None:
    told, untold = figures(CELL, "tokencake"), figures(CELL, "tokencake-untold")
    nameless = msgspec.structs.replace(
        CELL, workload=msgspec.structs.replace(CELL.workload, tenants="")
    )
    without = figures(nameless, "tokencake")
    assert untold["application_s"] == without["application_s"]
    assert told["application_s"] != without["application_s"]
    assert "tenants" not in without
    assert untold["tenants"]["of"].keys() == told["tenants"]["of"].keys() == {"a", "b"}
    assert told["tenants"]["of"]["b"]["applications"] == 2


def test_critical_agents_have_first_tokens_of_their_own_where_a_cell_asks(figures: Any) -> None:
    asked = figures(msgspec.structs.replace(CELL, critical_apart=True), "hicache")
    apart = asked.pop("critical_first_token_s")
    both = asked["first_token_s"]["returning"]["mean"]
    low, high = sorted(apart[whose]["mean"] for whose in ("critical", "others"))
    assert low < both < high
    assert asked == figures(CELL, "hicache")


def test_applications_declare_their_graphs_and_lengths_and_the_option_turns_paths_off(
    forking_process: Callable[..., Any],
) -> None:
    """Seconds that are left of it: unknown, by what nobody has learnt yet, and as declared."""

    def left_s(graphs: bool, *flags: str) -> dict[str, float | None]:
        return forking_process(run_in_fork, what_small_declares, graphs, flags)

    declared = left_s(True)
    assert declared["second"] == pytest.approx(declared["alone"] - declared["first"])
    small = fan_out.load("small")
    assert declared["output"] == sum(request.output_length for request in small.requests)
    silent = left_s(False)
    assert silent["second"] is silent["output"] is None
    assert left_s(True, "--tokencake-without", "paths")["second"] is None
