"""docs/benchmarks.md: the template filled from committed results."""

import json
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.matrix import sets as matrix_sets
from benchmarks.matrix import store
from benchmarks.matrix.store import Machine
from benchmarks.matrix.systems import LOWER_BOUND, all_systems, names
from benchmarks.report import calibration, metrics, results, sharing, sweeps, tables, targets
from benchmarks.report.results import Results

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"
PLOTS = REPOSITORY / "docs" / "plots"
README = REPOSITORY / "README.md"

GAINS_BEGIN = "<!-- gains: made by `make docs` -->"
GAINS_END = "<!-- end of gains -->"


def text(folder: Path = store.FOLDER, plots: Path = PLOTS) -> str:
    """The whole document; a section whose results are missing is left out."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filled = environment.get_template("benchmarks.md.in").render(context(folder, plots))
    lines = [line.rstrip() for line in filled.splitlines()]
    kept = [line for at, line in enumerate(lines) if line or (at and lines[at - 1])]
    return "\n".join(kept).strip() + "\n"


def readme(text: str, folder: Path = store.FOLDER) -> str:
    """``text`` with what stands between the marks made anew from the results.

    Raises:
        ValueError: if it does not have both marks, in order.
    """
    before, begin, rest = text.partition(GAINS_BEGIN)
    _, end, after = rest.partition(GAINS_END)
    if not begin or not end:
        raise ValueError(f"README.md: expected {GAINS_BEGIN} and then {GAINS_END}")
    sets = results.load(folder)
    shown = [sets[name] for name in ("standard", "load", "limits") if name in sets]
    return f"{before}{begin}\n\n{tables.gains(shown)}\n\n{end}{after}"


def context(folder: Path, plots: Path) -> dict[str, Any]:
    """What the template may use. Numbers come from results, never from here."""
    sets = results.load(folder)
    standard = sets.get("standard", Results([]))
    return {
        "sets": sets,
        "standard": standard,
        "rated": _rated(standard),
        "others": [c for c in standard.cells if "/equal-" not in c or "+" in c],
        "metrics": metrics,
        "tables": tables,
        "sharing": sharing,
        "sweeps": sweeps,
        "systems": _systems(standard),
        "targets": targets.text(sets, folder.parent),
        "calibration": calibration.table(folder.parent),
        "published": json.loads((HERE / "published.json").read_text()),
        "plots": sorted(file.name for file in plots.glob("*.svg")),
        "machines": _machines(standard),
        "took": _took(folder),
        "versions": _versions(sets),
        "codes": len({record.code for found in sets.values() for record in found.records.values()}),
    }


def _rated(standard: Results) -> dict[str, list[str]]:
    """Groups of cells that differ in the rate of arrivals only."""
    groups = {
        name: [cell for cell in cells if "/equal-" in cell]
        for name, cells in standard.groups.items()
        if "+" not in name
    }
    return {name: cells for name, cells in groups.items() if cells}


def _systems(standard: Results) -> str:
    """The systems, and the flags that their results say they had."""
    rows = []
    known = all_systems()
    for name in standard.systems(standard.cells):
        setting = next(r.setting for r in standard.records.values() if r.system == name)
        flags = " ".join(setting.get("flags", ())).replace("|", "\\|")
        what = known[name].what if name in known else "–"
        tier = "yes" if setting.get("host_tier") else "no"
        rows.append([f"`{name}`", what, tier, f"`{flags}`" if flags else "–"])
    return tables.table(["system", "what it is", "host tier", "flags"], rows)


def _machines(standard: Results) -> str:
    """The cells of the standard matrix and what they ran on."""
    rows = []
    for cell in standard.cells:
        record = next(r for r in standard.records.values() if r.cell == cell)
        spec, workload = record.spec, record.spec["workload"]
        asked = ", ".join(f"{name} {value}" for name, value in workload.items() if name != "source")
        rows.append(
            [
                f"`{cell}`",
                asked or "as recorded",
                spec["model"],
                spec["hardware"],
                f"{spec['pool_tokens']:,}",
                f"{spec['host_tokens']:,}",
            ]
        )
    header = ["cell", "workload", "model", "hardware", "pool, tokens", "host, tokens"]
    return tables.table(header, rows)


def _took(folder: Path) -> str:
    """Real time that the runs took, each when it was last made."""
    rows = []
    for name, usual in matrix_sets.USUAL_SYSTEMS.items():
        machines = store.read(name, Machine, folder)
        own = set(names(usual))
        for what, found in (
            ("", [machine for machine in machines if machine.system in own]),
            (", other systems", [machine for machine in machines if machine.system not in own]),
        ):
            if found:
                total_s = sum(machine.real_s for machine in found)
                rows.append(
                    [
                        f"`{name}`{what}",
                        f"{len(found):,}",
                        f"{total_s:,.0f}",
                        f"{total_s / 120:.0f}",
                    ]
                )
    header = ["set", "runs", "seconds of one core", "minutes, two at a time"]
    return tables.table(header, rows)


def _versions(sets: dict[str, Results]) -> str:
    found = {
        ", ".join(f"{name} {version}" for name, version in record.versions.items())
        for results_of_set in sets.values()
        for record in results_of_set.records.values()
        if record.system != LOWER_BOUND
    }
    return "; ".join(sorted(found))
