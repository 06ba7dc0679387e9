"""Tables of tenants, critical agents and remaining paths, from figures chosen here."""

from typing import Any

from benchmarks.matrix import sets, store
from benchmarks.report import document, sharing
from benchmarks.report.metrics import MEAN
from benchmarks.report.results import Results
from tests.benchmarks.made_up import record


def tenant(mean_s: float, **contended: float) -> dict[str, Any]:
    return {
        "end_to_end_s": {"mean": mean_s},
        "first_token_s": {"mean": mean_s / 10, "p95": mean_s / 5},
        "contended": {"share": 0.5, "pool_mean": 0.4, "pool_most": 0.6, **contended},
    }


def shared(seed: int, system: str, share: float) -> Any:
    of = {"a": tenant(100.0, share=share), "b": tenant(200.0, share=1 - share)}
    return record(
        f"tenants/two-seed-{seed}", system, 150.0, tenants={"contended_s": 400.0, "of": of}
    )


def test_shares_are_means_over_seeds_with_their_range() -> None:
    lines = [shared(seed, "tokencake-weights", 0.6 + 0.1 * seed) for seed in range(2)]
    shown = sharing.by_system(Results(lines), "tenants", sharing.TENANTS)
    row = shown.splitlines()[2]
    assert row.startswith("| `tokencake-weights` | 150 | 100 | 200 |")
    assert row.endswith("| 400 | 65 % (60 %–70 %) | 40 % | 60 % |")


def test_a_system_without_every_seed_has_no_row() -> None:
    lines = [shared(0, "hicache", 0.5), shared(1, "hicache", 0.5), shared(0, "tokencake", 0.5)]
    shown = sharing.by_system(Results(lines), "tenants", sharing.TENANTS)
    assert "`hicache`" in shown
    assert "`tokencake`" not in shown


def beside(cell: str, system: str, light_s: float) -> Any:
    of = {"light": tenant(light_s), "heavy": tenant(300.0)}
    return record(cell, system, tenants={"contended_s": 1.0, "of": of})


def test_a_light_tenants_slowdown_is_against_itself_alone_with_the_same_system() -> None:
    lines = [
        beside("isolation/beside-seed-0", "hicache", 200.0),
        beside("isolation/beside-seed-1", "hicache", 50.0),
        beside(sharing.ALONE, "hicache", 20.0),
        beside("isolation/beside-seed-0", "tokencake", 40.0),
        beside("isolation/beside-seed-1", "tokencake", 40.0),
    ]
    rows = sharing.isolation(Results(lines)).splitlines()[2:]
    assert rows == [
        "| `hicache` | 125 (50.0–200) | 20.0 | 5.0 | 12.5 (5.00–20.0) | 25.0 (10.0–40.0) | 2.00 | 300 |"
    ], "without a run alone there is no slowdown"


def test_critical_agents_and_others_are_beside_each_other() -> None:
    apart = {"critical": {"mean": 3.0, "p95": 9.0}, "others": {"mean": 2.0, "p95": 8.0}}
    line = record("reserve/code_writer-seed-0", "tokencake", 100.0, critical_first_token_s=apart)
    shown = sharing.by_system(Results([line]), "reserve", sharing.RESERVE)
    assert "| `tokencake` | 3.00 | 9.00 | 2.00 | 8.00 | 100 | 200 | 300 |" in shown


def test_paths_are_multiples_of_the_extension_that_knows_none_seed_by_seed() -> None:
    lines = [
        record(f"paths/uneven-seed-{seed}", system, mean_s)
        for seed, none_s in enumerate((100.0, 400.0))
        for system, mean_s in (("tokencake", 100.0), ("tokencake-no-paths", none_s))
    ]
    shown = sharing.paths(Results(lines), MEAN).splitlines()
    assert shown[0] == "| system | uneven |"
    assert shown[2] == "| `tokencake` | 0.500 (0.250–1.000) |"
    assert shown[3] == "| `tokencake-no-paths`, s | 250 (100–400) |"


def test_the_section_has_a_table_for_each_group_that_has_results(tmp_path) -> None:
    folder = tmp_path / "matrix"
    store.merge("sharing", [shared(0, "tokencake", 0.5)], folder)
    text = document.text(folder, tmp_path)
    assert "### Two tenants of the same applications" in text
    assert "### A light tenant beside one that floods" not in text
    assert "### Remaining paths" not in text


def test_the_committed_results_are_those_of_the_sets_cells_and_systems() -> None:
    from benchmarks.matrix.__main__ import tasks

    known = {record.key for record in store.read("sharing") if record.figures is not None}
    assert known == {task.key for task in tasks("sharing", "*", None)}
    groups = {name: {cell.group for cell in sets.cells(name)} for name in ("sharing", "sessions")}
    assert groups["sharing"] == sets.SYSTEMS_OF_GROUP.keys() - groups["sessions"]
