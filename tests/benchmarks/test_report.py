"""What the report derives from results, and that the committed document is what it makes."""

import json

import pytest

from benchmarks.matrix import sets, store
from benchmarks.matrix.store import Series
from benchmarks.matrix.systems import LOWER_BOUND
from benchmarks.report import calibration, document, sweeps, tables
from benchmarks.report.metrics import MAKESPAN, MEAN, P95, RETURNING, number
from benchmarks.report.ranking import geometric_mean, kendall_tau
from benchmarks.report.results import BEST_STOCK, ORACLE, Results, load, natural
from tests.benchmarks.made_up import cell_results, record

CELLS = [f"code_writer/equal-{rate}" for rate in sets.RATES]


@pytest.fixture
def results() -> Results:
    return Results(line for cell in CELLS for line in cell_results(cell))


class TestDerived:
    def test_best_stock_is_the_best_for_each_metric_by_itself(self):
        a = record("a/1", "stock", 100.0, stock=True, makespan_s=500.0)
        b = record("a/1", "hicache", 200.0, stock=True, makespan_s=400.0)
        results = Results([a, b, record("a/1", "tokencake", 50.0)])
        assert results.value("a/1", BEST_STOCK, MEAN) == 100.0
        assert results.value("a/1", BEST_STOCK, MAKESPAN) == 400.0
        assert results.ratio("a/1", "tokencake", MEAN) == 0.5

    def test_oracle_is_the_best_of_all_where_one_has_run(self, results):
        """Nobody beats it: who knows what is to come can choose any policy."""
        assert results.value(CELLS[0], ORACLE, MEAN) == 100.0
        ours = record("a/1", "tokencake", 99.0)
        assert Results([ours]).value("a/1", ORACLE, MEAN) is None
        behind = record("a/1", "oracle-age", 100.0)
        assert Results([ours, behind]).value("a/1", ORACLE, MEAN) == 99.0

    def test_a_failed_run_is_no_candidate(self):
        failed = record("a/1", "stock", stock=True, error="Stuck")
        results = Results([failed, record("a/1", "hicache", 200.0, stock=True)])
        assert results.value("a/1", BEST_STOCK, MEAN) == 200.0
        assert results.systems(["a/1"]) == ["hicache"]

    def test_unequal_work_is_refused(self):
        with pytest.raises(ValueError, match="output_tokens is 1 for tokencake"):
            Results([record("a/1", "stock"), record("a/1", "tokencake", output_tokens=1)])

    def test_cells_of_known_graphs_come_first(self):
        lines = [record("agents/1", "stock"), record("code_writer/equal-0.1", "stock")]
        assert Results(lines).cells == ["code_writer/equal-0.1", "agents/1"]

    def test_cells_are_in_the_order_of_their_numbers(self):
        assert sorted(["h/10x", "h/2x", "h/0.5x"], key=natural) == ["h/0.5x", "h/2x", "h/10x"]


class TestTables:
    def test_the_opening_names_the_best_setting_and_the_defaults(self, results):
        assert "| 200 `hicache-lpm` (0.50 × 400) |" in tables.opening(results)

    def test_the_best_system_is_bold_and_a_limit_never_is(self, results):
        shown = tables.by_cell(results, CELLS[:1], MEAN)
        assert "| `tokencake` | **150 (0.75)** |" in shown
        assert "| *oracle* | 100 (0.50) |" in shown
        assert f"| *{LOWER_BOUND}* | 50.0 (0.25) |" in shown
        assert "| *best-stock* | 200 |" in shown

    def test_a_metric_without_values_gives_no_row_for_that_system(self, results):
        assert LOWER_BOUND not in tables.by_cell(results, CELLS, P95)

    def test_details_show_shares_and_sizes(self, results):
        row = tables.details(results, CELLS[0], tables.MACHINE).splitlines()[-1]
        assert "| 323 | 46 | 70.0 | 20.0 | 2.00 | 1.00 | 1.50 | 70.0 | 15.0 | 5.0 |" in row

    def test_the_way_to_the_oracle_that_is_gone(self, results):
        assert "| 200 | 150 | 100 | 50.0 | 50 % |" in tables.bounds(results)

    def test_gains_are_geometric_means_over_a_workloads_cells(self):
        found = Results(
            [
                record(f"code_writer/equal-{rate}", system, mean_s, stock=system != "tokencake")
                for rate, ours_s in ((0.1, 40.0), (0.2, 90.0))
                for system, mean_s in (("stock", 200.0), ("hicache", 100.0), ("tokencake", ours_s))
            ]
        )
        row = tables.gains([found]).splitlines()[2]
        assert row.startswith("| code_writer, 2 rates | 0.30 | 0.60 | 0.60 |")

    def test_of_seeds_those_count_for_which_all_systems_have_run(self):
        systems = ("stock", 200.0), ("hicache", 100.0), ("tokencake", 50.0)
        names = ("50%-seed-0", "50%-seed-1", "80%-seed-0", "80%-seed-1")
        found = Results(
            [
                record(f"code_writer-load/{name}", system, mean_s, stock=system != "tokencake")
                for name in names
                for system, mean_s in systems
                if (name, system) != ("80%-seed-1", "hicache")
            ]
        )
        row = tables.gains([found]).splitlines()[2]
        assert row.startswith("| code_writer-load, 2 rates | 0.25 | 0.50 | 0.50 |")

    def test_variants_are_multiples_of_the_whole_and_in_no_other_table(self):
        found = Results(
            [
                record("code_writer/a", "stock", 200.0, stock=True),
                record("code_writer/a", "tokencake", 100.0),
                record("code_writer/a", "tokencake-no-order", 90.0),
                record("code_writer/b", "tokencake", 100.0),
            ]
        )
        lines = tables.parts(found, MEAN).splitlines()
        assert lines[0] == "| system | `code_writer/a` |"
        assert lines[2] == "| `tokencake-no-order` | 0.90 |"
        shown = tables.by_cell(found, ["code_writer/a"], MEAN)
        assert "no-order" not in shown
        assert "**100 (0.50)**" in shown

    def test_failures_are_listed_with_the_last_line_of_their_message(self):
        failed = record("a/1", "stock", error="Traceback\n  file\nStuck: at 3 s | nothing")
        shown = tables.failures({"x": Results([failed])})
        assert "| `a/1` | `stock` | Stuck: at 3 s \\| nothing |" in shown

    @pytest.mark.parametrize(
        ("value", "text"),
        [(None, "–"), (0, "0"), (1234.5, "1,234"), (349.2, "349"), (34.92, "34.9"),
         (3.492, "3.49"), (0.3492, "0.349"), (0.00001, "1.0e-05")],
    )  # fmt: skip
    def test_numbers_have_three_digits(self, value, text):
        assert number(value) == text


class TestRanking:
    def test_geometric_mean_lets_doubling_and_halving_cancel(self):
        assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
        with pytest.raises(ValueError, match="above 0"):
            geometric_mean([])

    def test_kendall_tau_of_known_rankings(self):
        assert kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == 1.0
        assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
        assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
        assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / (2 * 3) ** 0.5)


class TestSweeps:
    def test_seeds_go_together_with_their_range(self):
        lines = [
            line
            for seed, (stock, ours) in enumerate([(100.0, 50.0), (100.0, 200.0)])
            for line in (
                record(f"n/0.5-seed-{seed}", "stock", stock, stock=True),
                record(f"n/0.5-seed-{seed}", "tokencake", ours),
            )
        ]
        shown = sweeps.sweep(Results(lines), "n", MEAN)
        assert "| system | 0.5, 2 seeds |" in shown
        assert "| `tokencake` | 1.00 (0.50–2.00) |" in shown

    def test_a_system_without_all_seeds_has_no_entry(self):
        lines = [record(f"n/1-seed-{seed}", "stock", stock=True) for seed in range(3)]
        shown = sweeps.sweep(Results([*lines, record("n/1-seed-0", "tokencake")]), "n", MEAN)
        assert "tokencake" not in shown

    def test_a_seed_in_which_the_run_was_interrupted_is_left_out(self):
        """Its best-stock would be the best of too few: here of one that is slow."""
        whole = [line for seed in range(2) for line in self.of_seed(seed)]
        interrupted = record("n/1-seed-2", "stock", 400, stock=True)
        shown = sweeps.sweep(Results([*whole, interrupted]), "n", MEAN)
        assert "| system | 1, 2 seeds |" in shown
        assert "| *best-stock*, s | 200 |" in shown

    def of_seed(self, seed: int):
        slow = record(f"n/1-seed-{seed}", "stock", 400, stock=True)
        return [slow, record(f"n/1-seed-{seed}", "hicache", 200, stock=True)]

    def test_a_system_on_a_few_cells_only_makes_no_other_incomplete(self):
        lines = [line for seed in range(5) for line in self.of_seed(seed)]
        results = Results([*lines, record("n/1-seed-3", "mori")])
        assert len(results.complete(results.cells)) == 5

    def test_a_part_that_was_turned_off_on_most_cells_makes_no_other_incomplete(self):
        lines = [line for seed in range(3) for line in self.of_seed(seed)]
        parts = [record(f"n/1-seed-{seed}", "tokencake-no-order") for seed in range(2)]
        results = Results([*lines, *parts])
        assert len(results.complete(results.cells)) == 3

    def test_a_failure_makes_no_cell_incomplete(self):
        lines = [line for seed in range(3) for line in self.of_seed(seed)]
        failed = record("n/1-seed-2", "hicache", stock=True, error="Stuck")
        results = Results([*lines, failed])
        assert results.complete(results.cells) == results.cells
        assert "| `hicache` |" not in sweeps.sweep(results, "n", MEAN)

    def test_gains_are_paired_by_seed_and_have_their_range(self):
        lines = [
            line
            for seed, (stock, ours) in enumerate([(100.0, 50.0), (400.0, 100.0)])
            for line in (
                record(f"h/seed-{seed}", "stock", stock, stock=True),
                record(f"h/seed-{seed}", "hicache", stock / 2, stock=True),
                record(f"h/seed-{seed}", "tokencake", ours),
            )
        ]
        results = Results(lines)
        shown = sweeps.against(results, results.cells, "stock")
        assert "| `tokencake` | 70.7 (50.0–100) | -65 % (-75 to -50) | -29 % (-50 to +0) |" in shown

    def test_what_best_stock_is_the_best_of_is_said(self, results):
        assert sweeps.stock(results) == "`stock`, `hicache-lpm`"

    def test_sensitivity_says_how_far_rankings_agree_and_who_wins(self):
        base, slow = "sensitivity-x/as-calibrated", "sensitivity-x/compute-0.5x"
        reversed_ = [record(slow, "stock", 100, stock=True), record(slow, "tokencake", 300)]
        results = Results([*cell_results(base), *reversed_])
        assert "| `x/compute-0.5x` | `stock` | -1.00 | 3.00 | 2 |" in sweeps.sensitivity(results)


def test_the_calibration_table_says_how_far_off_each_figure_is(tmp_path):
    assert calibration.table(tmp_path) == ""
    figures = {"measured": {"wall_s": 880.0}, "published": {"wall_s": 800.0}}
    run = {"rate": 0.05, **figures, "ratio": {"wall_s": 1.1}}
    (tmp_path / calibration.FILE).write_text(json.dumps({"runs": [run]}))
    assert "| 0.05 | 880 of 800 (+10.0 %) |" in calibration.table(tmp_path)


class TestDocument:
    def text(self, tmp_path, **results_of_sets) -> str:
        folder = tmp_path / "results" / "matrix"
        for name, lines in results_of_sets.items():
            store.merge(name, lines, folder)
        return document.text(folder, tmp_path)

    def standard(self):
        names = [*CELLS, "claude_code/lanes-16", "code_writer+chat/equal-0.1"]
        return [line for name in names for line in cell_results(name)]

    def test_without_results_there_is_a_title_and_no_section(self, tmp_path):
        text = self.text(tmp_path)
        assert text.startswith("# Benchmarks")
        assert "\n## " not in text

    def test_opens_with_what_sglang_gives_by_itself(self, tmp_path):
        text = self.text(tmp_path, standard=self.standard())
        sections = [line for line in text.splitlines() if line.startswith("## ")]
        assert sections[0] == "## What SGLang's own settings give"
        assert "## code_writer, equal spacing" in sections
        assert "## claude_code/lanes-16" in sections
        assert "## code_writer+chat/equal-0.1" in sections
        assert "## What is left to gain" in sections

    def test_a_section_is_there_if_its_results_are(self, tmp_path):
        titles = {
            "load": "## Poisson arrivals at shares of HiCache's capacity",
            "noise": "## Tools that do not take the declared time",
            "noise-load": "## The same where the server keeps up",
            "host": "## Size of the host tier",
            "link": "## Speed of the link to the host",
            "sessions": "## Claude Code sessions with hints, in crowds, and beside a small host tier",
            "headline": "## The paper's largest gain",
            "sensitivity": "## Would another machine rank the systems differently?",
        }
        without = self.text(tmp_path, standard=self.standard())
        for name, title in titles.items():
            assert title not in without
            cell = "sensitivity-x/as-calibrated" if name == "sensitivity" else f"{name}/seed-0"
            assert title in self.text(tmp_path / name, **{name: cell_results(cell)})

    def test_a_sets_own_cells_fill_its_section(self, tmp_path):
        lines = {
            name: [line for cell in sets.cells(name) for line in cell_results(cell.id)]
            for name in sets.SETS
            if name not in ("standard", "limits", "check")
        }
        text = self.text(tmp_path, **lines)
        for group, title, header in (
            ("code_writer-load", MEAN.title, "50%, 5 seeds | 80%, 5 seeds | 95%, 5 seeds"),
            ("deep_research-load", RETURNING.title, "50%, 5 seeds | 80%, 5 seeds | 95%, 5 seeds"),
            ("deep_research-noise", P95.title, "0.0 | 0.25, 5 seeds | 0.5, 5 seeds | 1.0, 5 seeds"),
            ("code_writer-host", MAKESPAN.title, "0.5x | 1x | 2x | 4x | 10x"),
            ("code_writer-link", MEAN.title, "0.25x | 0.5x | 1x | 2x"),
            ("claude_code-16", RETURNING.title, "exact | free-copies | half-host | none"),
            ("claude_code-40", MEAN.title, "host-4x, 5 seeds | host-8x, 5 seeds"),
        ):
            assert f"### {group}: {title}\n\n| system | {header} |\n" in text
        assert text.count("| `tokencake` | 0.75 (0.75–0.75) |") > 10
        assert "All figures of claude_code-40/host-8x-seed-4" in text
        assert f"| system | {RETURNING.title} | against `stock` |" in text
        assert "| `code_writer-equal-0.1/compute-2x` | `tokencake` | 1.00 | 0.75 | 3 |" in text

    def test_a_plot_is_shown_if_it_is_there(self, tmp_path):
        assert "plots/code_writer-mean.svg" not in self.text(tmp_path, standard=self.standard())
        (tmp_path / "code_writer-mean.svg").touch()
        assert "](plots/code_writer-mean.svg)" in self.text(tmp_path, standard=self.standard())

    def test_failures_are_in_it(self, tmp_path):
        failed = record(CELLS[0], "hicache", error="Stuck: nothing is to come", stock=True)
        text = self.text(tmp_path, standard=[*self.standard(), failed])
        assert "## Runs that failed" in text

    def test_the_readmes_gains_are_what_the_committed_results_give(self):
        committed = document.README.read_text()
        assert committed == document.readme(committed), "run make docs"

    def test_a_readme_without_the_marks_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="expected <!-- gains"):
            document.readme("no marks", tmp_path)

    def test_the_committed_one_is_what_the_committed_results_give(self):
        made = document.text()
        assert document.DOCUMENT.read_text() == made, "run: make docs"


class TestPlots:
    def test_the_same_results_are_the_same_bytes(self, tmp_path):
        pytest.importorskip("matplotlib", reason="the bench extra is not installed")
        from benchmarks.report import plots

        folder = tmp_path / "matrix"
        lines = [line for cell in CELLS for line in cell_results(cell)]
        store.merge("standard", lines, folder)
        (cell, _), *_ = sets.PLOTTED
        for _, name in sets.PLOTTED[:2]:
            store.merge("standard", [series(cell, name)], folder)
        for where in ("one", "two"):
            names = [file.name for file in plots.draw_all(tmp_path / where, folder)]
        assert names == [
            "code_writer-mean.svg",
            "code_writer-occupancy.svg",
            "code_writer-gantt.svg",
        ]
        for name in names:
            drawn = (tmp_path / "one" / name).read_bytes()
            assert drawn == (tmp_path / "two" / name).read_bytes()
            assert b"dc:date" not in drawn

    def test_sets_that_vary_a_number_are_drawn_against_it(self, tmp_path):
        pytest.importorskip("matplotlib", reason="the bench extra is not installed")
        from benchmarks.report import plots

        folder = tmp_path / "matrix"
        swept = ("load", "noise", "noise-load", "host", "link")
        for name in (*swept, "sessions"):
            lines = [line for cell in sets.cells(name) for line in cell_results(cell.id)]
            store.merge(name, lines, folder)
        names = [file.name for file in plots.draw_all(tmp_path / "plots", folder)]
        assert names == [f"{dag}-{name}.svg" for name in swept for dag in sets.DAGS]
        drawn = (tmp_path / "plots" / "code_writer-host.svg").read_text()
        assert "tokencake" in drawn and "multiples of the device pool" in drawn

    def test_a_single_point_is_not_drawn(self, tmp_path):
        pytest.importorskip("matplotlib", reason="the bench extra is not installed")
        from benchmarks.report import plots

        store.merge("load", cell_results("code_writer-load/50%-seed-0"), tmp_path)
        assert list(plots.draw_all(tmp_path / "plots", tmp_path)) == []

    def test_parts_are_drawn_as_multiples_of_the_whole(self, tmp_path):
        from benchmarks.report import parts

        found = Results(
            [
                record("code_writer/a", "tokencake", 100.0),
                record("code_writer/a", "tokencake-no-order", 120.0),
                record("code_writer/a", "tokencake-temporal", 90.0),
                record("code_writer/a", "tokencake-paper", 90.0),
                record("code_writer/b", "tokencake", 100.0),
                record("code_writer/b", "tokencake-temporal", 50.0),
            ]
        )
        mean = parts.ablation(found).axes[0]
        drawn = mean.get_lines()[0].get_xydata()
        assert [list(dot) for dot in drawn] == [[0.9, 0.0], [1.2, 1.0]]
        shown = [label.get_text() for label in mean.get_yticklabels()]
        assert shown == ["temporal half alone", "without order"]

    def test_returns_are_shares_by_reason(self):
        from benchmarks.report import parts

        decisions = {"return.resident": 3, "return.lost": 1, "release.idle": 9}
        found = Results([record("claude_code-16/none", "tokencake", decisions=decisions)])
        bars = parts.returns(found, found.cells).axes[0].patches
        widths = dict(zip(parts.RETURN_REASONS, (bar.get_width() for bar in bars), strict=True))
        assert widths["resident"] == 0.75
        assert widths["lost"] == 0.25
        assert parts.returns(found, ["another/cell"]) is None

    def test_without_results_nothing_is_drawn(self, tmp_path):
        pytest.importorskip("matplotlib", reason="the bench extra is not installed")
        from benchmarks.report import plots

        assert list(plots.draw_all(tmp_path / "plots", tmp_path)) == []


def series(cell: str, system: str) -> Series:
    shares = {"running": [0.5, 0.6], "soon": [0.1, 0.1], "idle": [0.2, 0.1], "dead": [0.1, 0.1]}
    row = {
        "agent": "planner",
        "queued_s": 3.0,
        "admitted_s": 4.0,
        "first_token_s": 5.0,
        "finished_s": 9.0,
    }
    rows = [{**row, "tool_end_s": 12.0}, {**row, "tool_end_s": None}]
    return Series(cell=cell, system=system, occupancy={"time_s": [0.0, 1.0], **shares}, gantt=rows)


def test_committed_results_can_be_compared_and_none_beats_the_bound():
    for results in load().values():
        for cell in results.cells:
            for metric in (MEAN, MAKESPAN):
                bound = results.value(cell, LOWER_BOUND, metric)
                for system in results.systems([cell]):
                    value = results.value(cell, system, metric)
                    if bound is not None and value is not None:
                        assert value >= bound, f"{system} on {cell}"
