"""What the table of targets says: met only where every point is."""

import json
from pathlib import Path

import pytest

from benchmarks.report import targets
from benchmarks.report.metrics import MEAN
from benchmarks.report.results import BEST_STOCK, Results, load
from benchmarks.report.targets import RatioTarget, ratios
from tests.benchmarks.made_up import record

NOWHERE = Path("nowhere")


def results(**mean_s: float) -> Results:
    """One cell for each keyword, ``a_seed_0`` for a/1-seed-0; stock takes 100 s in all."""
    lines = []
    for name, own_s in mean_s.items():
        group, _, seed = name.partition("_")
        cell = f"{group}/1" + (f"-{seed.replace('_', '-')}" if seed else "")
        lines += [record(cell, "stock", 100.0, stock=True), record(cell, "tokencake", own_s)]
    return Results(lines)


def row(found: Results, most: float, **more) -> targets.Row:
    made = RatioTarget("these", "standard", ("*",), MEAN, most, **more).row({"standard": found})
    assert made is not None
    return made


def test_seeds_of_a_point_count_as_one_value():
    found = results(a_seed_0=50.0, a_seed_1=200.0, b=80.0)
    assert ratios(found, ["*"], "tokencake", BEST_STOCK, MEAN) == pytest.approx([1.0, 0.8])


def test_a_good_average_does_not_excuse_a_bad_point():
    found = results(a=50.0, b=104.0)
    assert not row(found, 0.9).met
    assert not row(found, 0.9, most_each=1.03).met
    assert row(found, 0.9, most_each=1.05).met
    assert not row(found, 0.7, most_each=1.05).met
    assert row(found, 0.9).measured == "0.721 (0.500–1.040)"


def test_nothing_is_said_of_what_has_not_all_been_run():
    found = results(a=50.0, b=60.0)
    del found.records["b/1", "tokencake"]
    target = RatioTarget("these", "standard", ("*",), MEAN, 0.9)
    assert target.row({"standard": found}) is None
    assert target.row({}) is None


def test_what_could_be_reached_is_the_same_figure_of_another_system():
    lines = [*results(a=50.0).records.values(), record("a/1", "oracle-age", 40.0)]
    assert row(Results(lines), 0.9).limits == "`oracle` 0.400"


def test_the_floor_of_a_point_is_a_multiple_of_best_stocks_averaged_over_its_seeds():
    found = results(a_seed_0=50.0, a_seed_1=50.0, b=50.0)
    floors = {"a/1-seed-0": {"mean": 20.0}, "a/1-seed-1": {"mean": 80.0}}
    assert targets._multiples(found, ["a/*", "b/*"], MEAN, floors) == pytest.approx([0.4])


@pytest.mark.parametrize(("rival_s", "met"), [(97.2, True), (96.0, False)])
def test_a_rival_that_is_ahead_is_named(rival_s, met):
    lines = [*results(a=100.0).records.values(), record("a/1", "kvflow", rival_s)]
    (found,) = [r for r in targets.rows({"standard": Results(lines)}, NOWHERE) if "rival" in r.what]
    assert found.met is met
    assert ("`kvflow` 1.04 (a/1, mean)" in found.measured) is not met


def test_ones_own_variants_and_oracles_are_no_rivals():
    lines = [
        *results(a=100.0).records.values(),
        record("a/1", "tokencake-temporal", 50.0),
        record("a/1", "oracle-age", 50.0),
        record("a/1", "tokencake-repo", 99.0),
    ]
    (found,) = [r for r in targets.rows({"standard": Results(lines)}, NOWHERE) if "rival" in r.what]
    assert found.measured == "`tokencake-repo` 1.01 (a/1, mean)"


def test_the_planners_cost_is_judged_by_its_mean(tmp_path):
    step = {"step_and_ticks_us": {"mean": 51.0, "median": 20.0}}
    names = ("no agents", "stalled", "stalled, long contexts", "stalled, host tier full")
    cost = {"steps": dict.fromkeys(names, step), "memory": {"bytes_per_agent": 2048}}
    (tmp_path / "planner_cost.json").write_text(json.dumps(cost))
    met = [found.met for found in targets.rows({}, tmp_path)]
    assert met == [False, False, False, False, True]


def test_every_target_matches_cells_of_the_committed_results():
    sets = load()
    for target in targets.TARGETS:
        assert target.row(sets) is not None, target.what
