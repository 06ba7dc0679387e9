"""Results of changed sources: kept if a sample comes out again, and none on a different digit."""

import msgspec
import pytest

from benchmarks.matrix import __main__ as command
from benchmarks.matrix import carry, runner, sets, store
from benchmarks.matrix.cells import Cell
from benchmarks.matrix.execute import Outcome
from benchmarks.matrix.runner import Task
from benchmarks.matrix.workloads import WorkloadSpec
from tests.benchmarks.made_up import figures
from tokencake_sglang.timewarp import forks

CELLS = [f"small/{number}" for number in range(6)]


def task(name: str, system: str) -> Task:
    workload = WorkloadSpec(source="code_writer", applications=1, arrivals="equal", rate=1.0)
    return Task("made_up", Cell(id=name, workload=workload, **sets.A800), system)


TASKS = [task(name, system) for name in CELLS for system in ("stock", "hicache")]


@pytest.fixture
def made_by_others(tmp_path):
    """A result of each task by other sources, all with a mean of 100 s."""
    records = [
        msgspec.structs.replace(
            made.record(workload="w", figures=figures()), code=f"older-{made.system}"
        )
        for made in TASKS
    ]
    store.merge("made_up", records, tmp_path)
    return tmp_path


@pytest.fixture
def means_s(monkeypatch):
    """The mean that a run of each system finds now; runs are made up, in real forks."""
    found = {"stock": 100.0, "hicache": 100.0}

    def execute(cell, system, **_):
        return Outcome(workload="w", figures=figures(found[system]), real_s=1.0)

    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr(forks, "preload", lambda: None)
    return found


def carry_all(folder, tmp_path_factory, sample=2):
    scratch = tmp_path_factory.mktemp("scratch")
    found = carry.outdated(TASKS, folder)
    return carry.carry_over(found, sample=sample, jobs=1, scratch=scratch, folder=folder)


class TestOutdated:
    def test_are_results_of_other_sources_alone(self, made_by_others):
        assert len(carry.outdated(TASKS, made_by_others)) == len(TASKS)
        now = TASKS[0].record(workload="w", figures=figures())
        store.merge("made_up", [now], made_by_others)
        assert TASKS[0].key not in {r.key for _, r in carry.outdated(TASKS, made_by_others)}

    @pytest.mark.parametrize(
        "change",
        [{"setting": {"flags": ["--other"]}}, {"spec": {}}, {"figures": None, "error": "Stuck"}],
    )
    def test_another_cell_setting_or_a_failure_is_none(self, tmp_path, change):
        made = TASKS[0].record(workload="w", figures=figures())
        other = msgspec.structs.replace(made, code="older", **change)
        store.merge("made_up", [other], tmp_path)
        assert carry.outdated(TASKS, tmp_path) == []

    def test_are_those_of_the_runs_that_were_asked_for(self, made_by_others):
        (only,) = carry.outdated(TASKS[:1], made_by_others)
        assert only[0] == TASKS[0]


class TestCarryOver:
    def test_after_a_sample_that_agrees_nothing_is_left_to_run(
        self, made_by_others, means_s, tmp_path_factory
    ):
        assert carry_all(made_by_others, tmp_path_factory) == []
        assert runner.to_do(TASKS, made_by_others) == []
        records = store.read("made_up", folder=made_by_others)
        sources = [r.carried_from for r in records]
        assert {s: sources.count(s) for s in set(sources)} == {
            "": 4,
            "older-stock": 4,
            "older-hicache": 4,
        }

    def test_the_first_sources_stay_named_when_carried_again(
        self, made_by_others, means_s, tmp_path_factory
    ):
        carry_all(made_by_others, tmp_path_factory)
        between = [
            msgspec.structs.replace(r, code="between")
            for r in store.read("made_up", folder=made_by_others)
        ]
        store.merge("made_up", between, made_by_others)
        carry_all(made_by_others, tmp_path_factory, sample=1)
        sources = {r.carried_from for r in store.read("made_up", folder=made_by_others)}
        assert sources == {"", "between", "older-stock", "older-hicache"}

    def test_a_digit_that_differs_leaves_its_system_as_it_was_and_not_the_others(
        self, made_by_others, means_s, tmp_path_factory
    ):
        means_s["hicache"] = 100.000001
        differences = carry_all(made_by_others, tmp_path_factory)
        assert any("end_to_end_s.mean is 100.000001, was 100.0" in line for line in differences)
        assert all(" hicache: " in line for line in differences)
        left = {t.system for t in runner.to_do(TASKS, made_by_others)}
        assert left == {"hicache"}
        codes = {r.code for r in store.read("made_up", folder=made_by_others)}
        assert "older-hicache" in codes and "older-stock" not in codes

    def test_results_of_several_sources_are_sampled_each(
        self, made_by_others, means_s, tmp_path_factory
    ):
        first, *_ = store.read("made_up", folder=made_by_others)
        wrong = msgspec.structs.replace(first, code="oldest", figures=figures(7.0))
        store.merge("made_up", [wrong], made_by_others)
        assert carry_all(made_by_others, tmp_path_factory, sample=1)
        assert [t.key for t in runner.to_do(TASKS, made_by_others)] == [first.key]

    def test_a_sample_of_nothing_is_refused(self, made_by_others, tmp_path):
        found = carry.outdated(TASKS, made_by_others)
        with pytest.raises(ValueError, match="sample: expected at least 1"):
            carry.carry_over(found, sample=0, jobs=1, scratch=tmp_path, folder=made_by_others)


class TestCommand:
    @pytest.fixture(autouse=True)
    def small_set(self, monkeypatch):
        monkeypatch.setattr(command, "tasks", lambda *_: TASKS)

    def carry(self, folder):
        arguments = command.parser().parse_args(
            ["carry", "--set", "noise", "--output", str(folder), "--jobs", "1"]
        )
        return command.carry_command(arguments)

    def test_says_how_many_were_carried(self, made_by_others, means_s, capsys):
        assert self.carry(made_by_others) == 0
        assert "12 results carried over, 0 outdated" in capsys.readouterr().err

    def test_fails_where_a_figure_is_another(self, made_by_others, means_s, capsys):
        means_s["stock"] = 50.0
        assert self.carry(made_by_others) == 1
        printed = capsys.readouterr()
        assert "stock: end_to_end_s.mean is 50.0, was 100.0" in printed.out
        assert "6 results carried over, 6 outdated" in printed.err
