"""Whole replays in virtual time, each in its own process: one holds one scheduler."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.timewarp.replays import (
    POOL_TOKENS,
    agents_and_chat,
    code_writers,
    matches_anew,
    returning_in_a_lane,
)
from tokencake_sglang.timewarp.forks import run_in_fork

SYSTEMS = ("stock", "hicache-priority", "tokencake")
DEEP_RESEARCH = ("hicache-priority", 4, "deep_research")
SAMPLED_ONCE_S = 1e9


@pytest.fixture(scope="module")
def run(forking_process: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def run(*arguments: Any) -> dict[str, Any]:
        if arguments not in known:
            known[arguments] = forking_process(run_in_fork, code_writers, *arguments)
        return known[arguments]

    return run


@pytest.mark.slow
def test_the_same_run_gives_the_same_figures_to_the_last_digit(
    run: Callable[..., Any], forking_process: Callable[..., Any]
) -> None:
    first, second = run("tokencake"), forking_process(run_in_fork, code_writers, "tokencake")
    assert first["figures"] == second["figures"]
    assert first["samples"] == second["samples"]
    assert first["figures"]["output_tokens"] == 2 * 6_464
    assert first["figures"]["hits"]["host_tokens"] > 0, "the pool was large enough: nothing tested"


@pytest.mark.slow
def test_an_application_does_not_return_from_the_one_before_it_in_its_lane(
    forking_process: Callable[..., Any],
) -> None:
    result = forking_process(run_in_fork, returning_in_a_lane)
    own, returning = result["own"], result["returning"]
    assert returning == {name for name, before in own.items() if before}
    assert len(set(result["waited"]) - returning) == 1, "the second application's first request"


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_looking_into_the_pool_changes_nothing(run: Callable[..., Any], system: str) -> None:
    watched = run(system)
    alone = run(system, 2, "code_writer", SAMPLED_ONCE_S)
    # Even then it is looked into when the scheduler falls idle.
    assert len(watched["samples"]) > 50 > len(alone["samples"])
    assert {**watched["figures"], "kv": 0} == {**alone["figures"], "kv": 0}


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_token_of_the_pool_is_in_one_state(run: Callable[..., Any], system: str) -> None:
    result = run(system)
    states = ("running", "soon", "idle", "dead", "free")
    for sample in result["samples"]:
        assert sum(sample[state] for state in states) == POOL_TOKENS["code_writer"]
        assert all(sample[state] >= 0 for state in states)
    for state in states:
        assert any(sample[state] for sample in result["samples"]), f"never {state}"
    kv = result["figures"]["kv"]
    assert kv["used"] == pytest.approx(kv["effective"] + kv["idle"] + kv["dead"])
    assert 0.5 < kv["effective"] < kv["used"] < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("system", ["stock", "hicache-lpm", "tokencake"])
def test_what_a_sample_remembers_of_the_last_is_what_the_tree_says(
    system: str, forking_process: Callable[..., Any]
) -> None:
    assert forking_process(run_in_fork, matches_anew, system) > 50


@pytest.mark.slow
def test_chat_beside_agents_has_first_tokens_of_its_own(
    run: Callable[..., Any], forking_process: Callable[..., Any]
) -> None:
    found = forking_process(run_in_fork, agents_and_chat)
    first, waits_s = found["figures"]["first_token_s"], found["chat_s"]
    assert len(waits_s) > 2
    assert first["untagged"]["mean"] == pytest.approx(sum(waits_s) / len(waits_s))
    assert first["untagged"]["p99"] == max(waits_s)
    assert first["first"]["p99"] not in waits_s
    assert "untagged" not in run("stock")["figures"]["first_token_s"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("stock",), ("tokencake",), DEEP_RESEARCH])
def test_no_run_beats_its_bounds(run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result = run(*arguments)
    figures, bounds = result["figures"], result["bounds"]
    assert figures["end_to_end_s"]["mean"] >= bounds["end_to_end_mean_s"]
    assert figures["end_to_end_s"]["p95"] >= bounds["end_to_end_p95_s"]
    assert figures["makespan_s"] >= bounds["makespan_s"]
    for name, seconds in figures["application_s"].items():
        assert seconds >= bounds["application_s"][name]
    assert figures["makespan_s"] < 3 * bounds["makespan_s"], "the bound says nothing"


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_figures_agree_with_each_other(run: Callable[..., Any], system: str) -> None:
    figures = run(system)["figures"]
    prefill, hits, transfers = (figures[name] for name in ("prefill_tokens", "hits", "transfers"))
    assert prefill["computed"] == prefill["needed"] + prefill["wasted"] > prefill["needed"]
    if not figures["retractions"] and not figures["preemptions"]:
        found = hits["device_tokens"] + hits["host_tokens"]
        assert hits["prompt_tokens"] == found + hits["computed_tokens"]
    moved = transfers["to_device_late_bytes"] + transfers["to_device_on_time_bytes"]
    assert transfers["to_device_bytes"] == moved
    assert (moved > 0) == (hits["host_tokens"] > 0) == (system != "stock")
    assert bool(figures["decisions"]) == (system == "tokencake")
    assert figures["fairness"]["worst_slowdown"] >= 1.0
    assert figures["end_to_end_s"]["max"] == max(figures["application_s"].values())


@pytest.mark.slow
def test_declaring_more_than_is_generated_changes_no_work_and_costs_stock_sglang_time(
    run: Callable[..., Any],
) -> None:
    """It keeps room for what is declared; the extension for what answers of the kind take."""
    declared = ("code_writer", 1.0, 4096)
    exact, generous = (run("hicache-lpm", 4, *how)["figures"] for how in ((), declared))
    predicted = run("tokencake", 4, *declared)["figures"]
    assert generous["output_tokens"] == exact["output_tokens"] == predicted["output_tokens"]
    assert generous["hits"]["prompt_tokens"] == exact["hits"]["prompt_tokens"]
    assert generous["makespan_s"] > 1.1 * exact["makespan_s"]
    assert predicted["makespan_s"] < generous["makespan_s"]


@pytest.mark.slow
def test_a_gantt_chart_has_every_request_of_the_median_application(run: Callable[..., Any]) -> None:
    result = run("tokencake")
    rows = result["gantt"]
    assert len(rows) == 27
    for row in rows:
        assert row["queued_s"] <= row["admitted_s"] < row["first_token_s"] < row["finished_s"]
        assert (row["tool"] is None) == (row["tool_end_s"] is None)
    ends = [row["tool_end_s"] or row["finished_s"] for row in rows]
    seconds = max(ends) - min(row["queued_s"] for row in rows)
    # A request is queued at the scheduler's first turn after its dispatch, up to a step later.
    assert seconds == pytest.approx(max(result["figures"]["application_s"].values()), abs=0.1)


@pytest.mark.slow
def test_real_time_of_the_scheduler_includes_the_planner(run: Callable[..., Any]) -> None:
    machine = run("tokencake")["machine"]
    assert 0 < machine["planner_us_per_step"] < machine["scheduler_us_per_step"]
    assert machine["steps_per_s"] == run("tokencake")["figures"]["steps"]
    assert "planner_us_per_step" not in run("stock")["machine"]
