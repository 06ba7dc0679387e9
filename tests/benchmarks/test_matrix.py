"""Cells, what is stored of a run, what is run again and what happens when a run fails."""

import subprocess
import sys
from types import SimpleNamespace

import msgspec
import pytest

from benchmarks.matrix import __main__ as command
from benchmarks.matrix import check, one, runner, sets, store, systems, work, workloads
from benchmarks.matrix.cells import Cell, pool_tokens
from benchmarks.matrix.execute import Outcome
from benchmarks.matrix.figures import agents_only, compact, occupancy_series, rounded
from benchmarks.matrix.fingerprint import _BOUND, _OWN, fingerprint, meaning
from benchmarks.matrix.runner import Task
from benchmarks.matrix.store import Machine, Record
from benchmarks.matrix.workloads import WorkloadSpec
from benchmarks.workloads.working_set import peak_tokens
from tests.benchmarks.made_up import figures, record
from tokencake_sglang.timewarp import forks
from tokencake_sglang.timewarp.models import load_model_profile

WITHOUT_RESULTS = [name for name in sets.SETS if "load" not in name]


class TestCells:
    @pytest.mark.parametrize("name", WITHOUT_RESULTS)
    def test_of_a_set_have_ids_of_their_own(self, name):
        ids = [cell.id for cell in sets.cells(name)]
        assert len(ids) == len(set(ids))
        assert all(cell.group and cell.variant for cell in sets.cells(name))

    @pytest.mark.parametrize("name", WITHOUT_RESULTS)
    def test_survive_json_and_can_be_keys(self, name):
        for cell in sets.cells(name):
            again = msgspec.convert(msgspec.json.decode(msgspec.json.encode(cell)), Cell)
            assert again == cell
            assert hash(again) == hash(cell)

    def test_standard_is_both_dags_at_five_rates_and_three_more(self):
        ids = [cell.id for cell in sets.cells("standard")]
        for name in sets.DAGS:
            assert [f"{name}/equal-{rate}" for rate in (0.05, 0.1, 0.2, 0.5, 1.0)] == [
                cell for cell in ids if cell.startswith(f"{name}/")
            ]
        assert len(ids) == 13

    @pytest.mark.parametrize("name", ["standard", "sharing", "check"])
    def test_no_prompt_is_larger_than_its_pool(self, name):
        for cell in sets.cells(name):
            requests = workloads.build(cell.workload).requests
            longest = max(request.prompt_length + request.output_length for request in requests)
            assert longest < cell.pool_tokens

    def test_pools_are_what_memory_leaves_beside_the_weights(self):
        assert sets.H200["pool_tokens"] == 455_216
        assert pool_tokens(140e9, 65.5e9, 262_144) == 204_080
        with pytest.raises(ValueError, match="memory_bytes"):
            pool_tokens(24e9, 29.5e9, 196_608)

    def test_pools_are_computed_from_the_models_own_sizes(self):
        for name, kv_bytes, weights in (
            ("qwen2.5-14b", 196_608, 29.5e9),
            ("qwen2.5-32b", 262_144, 65.5e9),
        ):
            model = load_model_profile(name)
            assert model.kv_bytes_per_token == kv_bytes
            assert 2 * model.parameters == pytest.approx(weights, rel=0.01)

    def test_load_is_a_share_of_the_capacity_that_hicache_was_measured_to_have(self, monkeypatch):
        made = [record(f"{name}/equal-1.0", "hicache", 100.0) for name in sets.DAGS]
        monkeypatch.setattr(store, "read", lambda name: made)
        rates = {cell.id: cell.workload.rate for cell in sets.cells("load")}
        assert rates["code_writer-load/50%-seed-0"] == round(0.5 * 24 / 300, 6)
        assert len(rates) == 2 * 3 * 5

    def test_of_sessions_are_those_that_the_bars_name(self):
        pool = sets.H200["pool_tokens"]
        cells = {cell.id: cell for cell in sets.cells("sessions")}
        of_16 = {name: cell for name, cell in cells.items() if cell.group == "claude_code-16"}
        assert {name: cell.workload.hints for name, cell in of_16.items()} == {
            "claude_code-16/none": "recorded",
            "claude_code-16/exact": "exact",
            "claude_code-16/free-copies": "recorded",
            "claude_code-16/half-host": "recorded",
        }
        assert cells["claude_code-16/none"].host_tokens == 4 * pool
        assert cells["claude_code-16/half-host"].host_tokens == 739_696
        drawn = [cell for cell in cells.values() if cell.group == "claude_code-16-drawn"]
        assert {(c.workload.hints, c.workload.seed) for c in drawn} == {
            ("exact", seed) for seed in range(5)
        }
        assert all(c.workload.whole and c.host_tokens == 4 * pool for c in drawn)
        of_40 = [cell for cell in cells.values() if cell.group == "claude_code-40"]
        assert {(c.host_tokens // pool, c.workload.seed) for c in of_40} == {
            (ratio, seed) for ratio in (4, 8) for seed in range(5)
        }
        assert all(c.workload.whole and c.workload.applications == 40 for c in of_40)

    def test_of_sharing_have_whom_their_tables_compare(self):
        cells = {cell.id: cell for cell in sets.cells("sharing")}
        for cell in cells.values():
            built = workloads.build(cell.workload)
            tenants = {request.tenant for request in built.requests}
            critical = any(request.critical for request in built.requests)
            assert cell.critical_apart == (cell.group == "reserve")
            assert critical or cell.group != "reserve"
            assert not critical or cell.group != "paths"
            match cell.group:
                case "tenants":
                    assert tenants == {"a", "b"}
                case "isolation" if cell.variant == "alone":
                    assert tenants == {"light"}
                case "isolation":
                    assert tenants == {"heavy", "light"}
                case _:
                    assert tenants == {None}

    def test_load_without_that_measurement_says_what_to_run(self, monkeypatch):
        monkeypatch.setattr(store, "read", lambda name: [])
        with pytest.raises(SystemExit, match="--systems hicache"):
            sets.cells("load")


class TestWorkload:
    def test_is_the_same_every_time_and_another_with_another_seed(self):
        spec = WorkloadSpec(source="code_writer", applications=2, arrivals="poisson", rate=1.0)
        first = workloads.digest(workloads.build(spec))
        assert workloads.digest(workloads.build(spec)) == first
        other = msgspec.structs.replace(spec, seed=1)
        assert workloads.digest(workloads.build(other)) != first

    def test_of_a_committed_result_asks_what_it_asked_then(self):
        """A field that is new must change neither a cell's own JSON nor its requests."""
        cells = {cell.id: cell for cell in sets.cells("standard")}
        known = {r.cell: r for r in store.read("standard") if r.workload}
        for name in ("code_writer/equal-0.2", "code_writer+chat/equal-0.1"):
            assert known[name].spec == cells[name].spec
            assert known[name].workload == workloads.digest(workloads.build(cells[name].workload))

    def test_of_two_tenants_differs_in_nothing_but_their_names(self):
        spec = WorkloadSpec(source="code_writer", applications=3, arrivals="equal", rate=1.0)
        plain = workloads.build(spec)
        shared = workloads.build(msgspec.structs.replace(spec, tenants="a,b"))
        of = {request.application: request.tenant for request in shared.requests}
        assert list(of.values()) == ["a", "b", "a"]
        nameless = [msgspec.structs.replace(r, tenant=None) for r in shared.requests]
        assert nameless == list(plain.requests)

    def test_beside_others_small_applications_come_later(self):
        spec = WorkloadSpec(
            source="code_writer",
            applications=2,
            arrivals="equal",
            rate=1.0,
            tenants="heavy",
            beside=3,
            beside_rate=0.1,
            beside_from_s=60.0,
        )
        built = workloads.build(spec)
        light = {r.application for r in built.requests if r.tenant == "light"}
        assert light == {"small#0", "small#1", "small#2"}
        starts = [r.arrival_s for r in built.requests if r.tenant == "light" and r.is_root]
        assert starts[0] == 60.0 and starts == sorted(starts)
        with pytest.raises(ValueError, match="beside_rate"):
            workloads.build(msgspec.structs.replace(spec, beside_rate=None))

    def test_unmarked_has_no_critical_agents_and_is_otherwise_the_same(self):
        spec = WorkloadSpec(source="code_writer", applications=1)
        marked = workloads.build(spec).requests
        unmarked = workloads.build(msgspec.structs.replace(spec, unmarked=True)).requests
        assert any(request.critical for request in marked)
        assert unmarked == tuple(msgspec.structs.replace(r, critical=False) for r in marked)

    def test_of_claude_code_is_the_committed_slice_whatever_lies_beside_the_checkout(self):
        assert sets.CLAUDE_CODE.whole is False
        built = workloads.build(sets.CLAUDE_CODE)
        assert built.header.options["data"] == "weka_claude_code_slice.jsonl.gz"

    def test_with_exact_hints_declares_the_time_with_its_noise(self):
        spec = WorkloadSpec(source="code_writer", applications=1, tool_noise=0.5, hints="exact")
        calls = [r.call for r in workloads.build(spec).requests if r.call is not None]
        assert calls and all(call.declared_s == call.wait_s for call in calls)
        as_recorded = msgspec.structs.replace(spec, hints="recorded")
        others = [r.call for r in workloads.build(as_recorded).requests if r.call is not None]
        assert [call.wait_s for call in others] == [call.wait_s for call in calls]
        assert any(call.declared_s != call.wait_s for call in others)

    def test_of_a_whole_data_set_that_is_not_here_is_refused(self, monkeypatch):
        monkeypatch.setattr(workloads.claude_code, "DATA", workloads.CLAUDE_CODE_SLICE)
        spec = msgspec.structs.replace(sets.CLAUDE_CODE, whole=True)
        assert workloads.is_available(sets.CLAUDE_CODE)
        assert not workloads.is_available(spec)
        with pytest.raises(ValueError, match="whole: the data set does not lie beside"):
            workloads.build(spec)

    def test_of_claude_code_has_the_working_set_that_its_cells_count_with(self):
        assert peak_tokens(workloads.build(sets.CLAUDE_CODE)) == sets.CLAUDE_CODE_PEAK_TOKENS

    def test_without_a_rate_names_it(self):
        with pytest.raises(ValueError, match="rate"):
            workloads.build(WorkloadSpec(source="code_writer", applications=1, arrivals="equal"))

    def test_of_an_unknown_source_names_those_there_are(self):
        with pytest.raises(ValueError, match="code_writer"):
            workloads.build(WorkloadSpec(source="codewriter"))


class TestFingerprint:
    def test_does_not_see_comments_docstrings_or_layout(self):
        plain = "def f(x):\n    return x\n"
        assert meaning(plain) == meaning(
            '"""Doc."""\n# why\ndef f( x ):\n    """Doc."""\n    return x'
        )
        assert meaning(plain) != meaning(plain.replace("return x", "return -x"))

    def test_of_stock_does_not_depend_on_the_extension(self, monkeypatch):
        monkeypatch.setattr("benchmarks.matrix.fingerprint._EXTENSION", ())
        assert fingerprint("stock") == fingerprint("hicache-lpm")
        monkeypatch.undo()
        assert fingerprint("tokencake") != fingerprint("stock")

    def test_of_a_rival_leaves_out_only_what_it_never_loads(self):
        """Else a change of TokenCake's own rules would go unnoticed in a rival's result."""
        script = (
            "import sys\n"
            "from benchmarks.rivals import RIVALS\n"
            "from tokencake_sglang.config import TokencakeConfig\n"
            "from tokencake_sglang.engine import scheduler_hooks\n"
            "from tokencake_sglang.engine.policy_planner import policy_class\n"
            "for rival in RIVALS.values():\n"
            "    policy_class(rival.flags[2])\n"
            "print(*(m.replace('.', '/') for m in sys.modules))"
        )
        loaded = printed(script)
        assert "tokencake_sglang/engine/policy_planner" in loaded
        for part in _OWN:
            assert part.removesuffix(".py") not in loaded

    def test_of_a_run_leaves_out_only_what_no_run_loads(self):
        loaded = printed(
            "import sys\n"
            "from tokencake_sglang.replay import driver, figures, machine, tool_times\n"
            "print(*(m.replace('.', '/') for m in sys.modules))"
        )
        assert "tokencake_sglang/replay/critical_path" in loaded
        for part in _BOUND:
            assert part.removesuffix(".py") not in loaded


def printed(script: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()


class TestSystems:
    def test_are_chosen_by_patterns_in_their_own_order(self):
        assert systems.names("tokencake,stock-?fs,stock") == ["stock", "stock-dfs", "tokencake"]

    def test_a_pattern_that_matches_nothing_is_refused(self):
        with pytest.raises(ValueError, match="'vllm' matches none of"):
            systems.names("vllm")

    def test_of_every_set_are_known_and_can_be_compared_with_sglangs_own(self):
        assert sets.USUAL_SYSTEMS.keys() == sets.SETS.keys()
        for pattern in sets.USUAL_SYSTEMS.values():
            usual = systems.names(pattern)
            assert {"tokencake", "stock", "hicache-lpm"} <= set(usual)

    @pytest.mark.parametrize("set_name", ["sharing", "sessions"])
    def test_of_a_group_are_some_of_its_sets(self, set_name):
        usual = set(systems.names(sets.USUAL_SYSTEMS[set_name]))
        of_groups = set()
        for cell in sets.cells(set_name):
            chosen = {t.system for t in command.tasks(set_name, cell.id, None)}
            pattern = sets.SYSTEMS_OF_GROUP.get(cell.group, sets.USUAL_SYSTEMS[set_name])
            assert chosen == set(systems.names(pattern)) <= usual
            of_groups |= chosen
        assert of_groups == usual

    def test_what_is_asked_for_by_name_runs_everywhere(self):
        asked = command.tasks("sharing", "paths/*", "stock")
        assert {task.system for task in asked} == {"stock"}

    def test_what_older_systems_do_not_have_is_no_part_of_their_setting(self):
        """Else their committed results would be of another system."""
        known = {r.system: r for r in store.read("standard") if r.setting}
        for name in ("hicache", "tokencake", "tokencake-no-order"):
            assert systems.setting(systems.all_systems()[name]) == known[name].setting
        assert systems.setting(systems.all_systems()["tokencake-untold"])["tenants"] is False

    def test_settings_are_json(self):
        for system in systems.all_systems().values():
            msgspec.json.encode(systems.setting(system))


def cell(name: str = "small/1") -> Cell:
    workload = WorkloadSpec(source="code_writer", applications=1, arrivals="equal", rate=1.0)
    return Cell(id=name, workload=workload, **sets.A800)


def task(system: str = "stock", name: str = "small/1") -> Task:
    return Task("made_up", cell(name), system)


class TestStore:
    def test_the_same_results_are_the_same_bytes_in_any_order(self, tmp_path):
        lines = [record("a/1", "stock"), record("a/1", "hicache"), record("b/1", "stock")]
        store.merge("one", lines, tmp_path)
        store.merge("two", lines[::-1], tmp_path)
        assert store.path("one", folder=tmp_path).read_bytes() == (
            store.path("two", folder=tmp_path).read_bytes()
        )
        assert {line.key for line in store.read("one", folder=tmp_path)} == {r.key for r in lines}

    def test_a_newer_result_takes_the_older_ones_place(self, tmp_path):
        store.merge("set", [record("a/1", "stock", 1.0), record("a/1", "stock", 2.0)], tmp_path)
        (kept,) = store.read("set", folder=tmp_path)
        assert kept.figures["end_to_end_s"]["mean"] == 2.0

    def test_real_times_are_in_a_file_of_their_own(self, tmp_path):
        store.merge("set", [record("a/1", "stock")], tmp_path)
        before = store.path("set", folder=tmp_path).read_bytes()
        store.merge("set", [Machine(cell="a/1", system="stock", real_s=1.0)], tmp_path)
        assert store.path("set", folder=tmp_path).read_bytes() == before
        assert list(store.sets(tmp_path)) == ["set"]

    def test_cells_that_a_set_no_longer_has_are_dropped(self, tmp_path):
        store.merge("set", [record("a/1", "stock"), record("b/1", "stock")], tmp_path)
        store.keep_only("set", {"b/1"}, tmp_path)
        assert [line.cell for line in store.read("set", folder=tmp_path)] == ["b/1"]

    def test_figures_are_rounded_to_microseconds_and_counts_are_left(self):
        assert rounded({"s": 1.23456789, "n": 7, "all": [0.1234567]}) == {
            "s": 1.234568,
            "n": 7,
            "all": [0.123457],
        }

    def test_times_of_applications_lose_their_names(self):
        made = compact({"application_s": {"b": 2.04, "a": 1.06}, "steps": 3})
        assert made == {"application_s": [1.1, 2.0], "steps": 3}


class TestFigures:
    def test_of_applications_beside_chat_are_those_of_the_applications(self):
        spec = WorkloadSpec(source="code_writer", applications=2, chat_rate=1.0, chat_s=3.0)
        workload = workloads.build(spec)
        times_s = {name: 1.0 for name in workload.applications}
        times_s["code_writer#0"], times_s["code_writer#1"] = 10.0, 30.0
        found = agents_only(workload, figures(application_s=times_s))
        assert found["applications"] == 2
        assert found["end_to_end_s"]["mean"] == 20.0
        assert found["background_s"]["mean"] == 1.0

    def test_a_series_is_thinned_to_what_a_plot_can_show(self):
        samples = [SimpleNamespace(time_s=s, running=1, soon=2, idle=3, dead=4) for s in range(999)]
        occupancy = SimpleNamespace(samples=samples, pool_tokens=10)
        series = occupancy_series(SimpleNamespace(occupancy=occupancy))
        assert 100 < len(series["time_s"]) <= 160
        assert (series["running"][0], series["dead"][0]) == (0.1, 0.4)


class TestToDo:
    def done(self, tmp_path, **changes):
        made = task().record(workload="w", figures=figures())
        store.merge("made_up", [msgspec.structs.replace(made, **changes)], tmp_path)
        return runner.to_do([task()], tmp_path)

    def test_what_has_a_result_is_not_run_again(self, tmp_path):
        assert self.done(tmp_path) == []

    def test_a_failure_is_a_result(self, tmp_path):
        assert self.done(tmp_path, figures=None, error="Stuck: nothing is to come") == []

    @pytest.mark.parametrize(
        "change",
        [
            {"code": "of other sources"},
            {"setting": {"flags": ["--other"]}},
            {"spec": {"id": "small/1"}},
            {"figures": None, "error": "killed", "retry": True},
        ],
    )
    def test_another_cell_setting_source_or_a_machines_failure_is_run(self, tmp_path, change):
        assert self.done(tmp_path, **change) == [task()]

    def test_the_estimate_is_what_the_run_took_before(self, tmp_path):
        store.merge("made_up", [Machine(cell="small/1", system="stock", real_s=7.5)], tmp_path)
        assert runner.estimate_s([task()], tmp_path) == 7.5
        assert runner.estimate_s([task("hicache")], tmp_path) == 7.5
        assert runner.estimate_s([task(name="other/1")], tmp_path) == runner.USUAL_S


class TestRun:
    """With runs that are made up, in real forks."""

    @pytest.fixture(autouse=True)
    def made_up_runs(self, monkeypatch):
        def execute(cell, system, **_):
            if system == "hicache":
                raise RuntimeError("nothing is to come <Req object at 0x7f00>")
            if system == "hicache-lpm":
                raise SystemExit("refused")
            if system == "hicache-dfs":
                import os

                os.kill(os.getpid(), 9)
            return Outcome(workload="w", figures=figures(), real_s=1.0)

        monkeypatch.setattr(runner, "execute", execute)
        monkeypatch.setattr(forks, "preload", lambda: None)

    def test_failures_are_recorded_with_their_message_and_the_others_go_on(self, tmp_path):
        names = ["hicache", "hicache-lpm", "stock", "hicache-dfs", "stock-lpm"]
        seen = []
        records = runner.run(
            [task(name) for name in names],
            jobs=2,
            folder=tmp_path,
            on_record=lambda task, _: seen.append(task.system),
        )
        errors = {r.system: r.error for r in records}
        assert errors["hicache"] == "RuntimeError: nothing is to come <Req object>"
        assert errors["hicache-lpm"] == "SystemExit: refused"
        assert "SIGKILL" in errors["hicache-dfs"]
        assert errors["stock"] is None and errors["stock-lpm"] is None
        assert sorted(seen) == sorted(names)
        assert {r.system for r in store.read("made_up", folder=tmp_path)} == set(names)

    def test_only_what_the_machine_did_is_tried_again(self, tmp_path):
        chosen = [task(name) for name in ("hicache", "hicache-dfs", "stock")]
        runner.run(chosen, jobs=1, folder=tmp_path)
        assert [left.system for left in runner.to_do(chosen, tmp_path)] == ["hicache-dfs"]

    def test_a_record_says_what_it_was_made_from(self, tmp_path):
        (made,) = runner.run([task()], jobs=1, folder=tmp_path)
        assert msgspec.convert(made.spec, Cell) == cell()
        assert made.setting["stock"] is True
        assert {"python", "sglang", "torch", "tokencake-sglang"} == made.versions.keys()
        assert made.code == fingerprint("stock")


class TestEqualWork:
    def workload(self):
        return workloads.build(WorkloadSpec(source="code_writer", applications=1))

    def served(self, **changes):
        asked = self.workload()
        return figures(
            requests=len(asked.requests),
            output_tokens=changes.get("output_tokens", asked.output_tokens),
            hits={"prompt_tokens": changes.get("prompt_tokens", asked.prompt_tokens)},
        )

    def test_a_complete_run_passes(self):
        work.check_work(self.workload(), self.served())

    @pytest.mark.parametrize("what", ["output_tokens", "prompt_tokens"])
    def test_a_truncated_run_is_refused(self, what):
        with pytest.raises(work.UnequalWork, match=what):
            work.check_work(self.workload(), self.served(**{what: 1}))

    def test_systems_of_a_cell_are_compared(self):
        same = [record("a/1", "stock"), record("a/1", "hicache")]
        assert work.unequal_work(same) == []
        other = record("a/1", "tokencake", output_tokens=1)
        (problem,) = work.unequal_work([*same, other])
        assert "output_tokens is 1 for tokencake" in problem

    def test_other_cells_a_failure_and_the_bound_are_not(self):
        lines = [
            record("a/1", "stock"),
            record("b/1", "stock", output_tokens=1),
            record("a/1", "hicache", error="Stuck"),
            record("a/1", "lower-bound", output_tokens=2),
        ]
        assert work.unequal_work(lines) == []


class TestCheck:
    def test_names_each_figure_that_is_another(self):
        was = record("a/1", "stock", 100.0)
        assert list(check.changed(was, was)) == []
        assert list(check.changed(was, record("a/1", "stock", 100.0, steps=1))) == [
            "a/1 stock: steps is 1, was 20000"
        ]

    def test_a_run_that_now_fails_is_another(self):
        (line,) = check.changed(record("a/1", "stock"), record("a/1", "stock", error="Stuck"))
        assert "'Stuck'" in line

    @pytest.mark.slow
    def test_the_committed_figures_of_the_slice_come_out_again(self):
        command = [sys.executable, "-m", "benchmarks.matrix", "check", "--jobs", "2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr[-2000:]

    def test_the_slice_has_committed_results(self):
        assert all(record.figures is not None for record in store.read(check.SET))
        known = {record.cell for record in store.read(check.SET)}
        assert known == {cell.id for cell in sets.cells(check.SET)}


class TestCommand:
    def cell(self, *arguments: str) -> Cell:
        return one.cell_of(command.parser().parse_args(["one", *arguments]))

    def test_a_single_runs_options_change_its_cell(self):
        made = self.cell("--source", "deep_research", "--rate", "0.5", "--pool-tokens", "16384")
        assert made.workload.source == "deep_research"
        assert made.workload.rate == 0.5
        assert made.pool_tokens == 16_384
        assert made.host_tokens == 163_840
        assert made.hardware == "a800"

    def test_a_single_run_can_start_from_a_cell(self):
        made = self.cell("--cell", "claude_code/lanes-16", "--lanes", "8", "--no-overlap")
        assert made.workload == msgspec.structs.replace(sets.CLAUDE_CODE, lanes=8)
        assert made.hardware == "h200"
        assert made.overlap is False

    def test_a_replay_file_keeps_its_own_arrivals(self):
        assert self.cell("--source", "mine.jsonl").workload == WorkloadSpec(source="mine.jsonl")

    def test_runs_are_chosen_by_patterns(self):
        chosen = command.tasks("standard", "code_writer/*", "stock,tokencake")
        assert len(chosen) == 5 * 2
        assert [t.system for t in chosen if t.series] == ["tokencake"]

    def test_runs_go_seed_by_seed_so_that_an_interrupted_one_leaves_whole_comparisons(self):
        chosen = command.tasks("noise", "*", "stock,tokencake")
        seeds = [task.cell.workload.seed for task in chosen]
        assert seeds == sorted(seeds)
        of_first = {(t.cell.group, t.system) for t in chosen if t.cell.workload.seed == 0}
        assert of_first == {(t.cell.group, t.system) for t in chosen}
        assert len(chosen) == len({task.key for task in chosen})

    def test_cells_whose_data_are_not_here_are_left_out_and_named(self, monkeypatch, capsys):
        monkeypatch.setattr(workloads.claude_code, "DATA", workloads.CLAUDE_CODE_SLICE)
        left = command.possible(command.tasks("sessions", "*", "stock"))
        assert {task.cell.group for task in left} == {"claude_code-16"}
        assert "claude_code-40/host-4x-seed-0: left out" in capsys.readouterr().err

    def test_what_such_cells_have_as_results_is_kept(self, monkeypatch, tmp_path):
        monkeypatch.setattr(workloads.claude_code, "DATA", workloads.CLAUDE_CODE_SLICE)
        kept = record("claude_code-40/host-4x-seed-0", "stock")
        store.merge("sessions", [kept, record("of/earlier", "stock")], tmp_path)
        pattern = ["--cells", "claude_code-40/*", "--systems", "stock"]
        options = ["--set", "sessions", *pattern, "--output", str(tmp_path)]
        assert command.run_command(command.parser().parse_args(["run", *options])) == 0
        assert store.read("sessions", folder=tmp_path) == [kept]

    def test_an_option_of_few_words_takes_no_other(self, capsys):
        assert self.cell("--hints", "exact").workload.hints == "exact"
        with pytest.raises(SystemExit):
            self.cell("--hints", "exakt")
        assert "recorded" in capsys.readouterr().err


def test_a_record_without_figures_says_why():
    made: Record = task().record(error="Stuck: nothing is to come")
    assert made.figures is None
    assert made.error == "Stuck: nothing is to come"
