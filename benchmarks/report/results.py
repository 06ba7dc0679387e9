"""Committed results, and the two contenders that are derived from them."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.matrix import store
from benchmarks.matrix.sets import DAGS
from benchmarks.matrix.store import Record
from benchmarks.matrix.systems import LOWER_BOUND, VARIANTS, all_systems
from benchmarks.matrix.work import unequal_work
from benchmarks.report.metrics import Metric

BEST_STOCK = "best-stock"
"""For each metric the best of SGLang's own settings: more than any single one of them."""

ORACLE = "oracle"
"""For each metric the best of all, where policies that know every return beforehand have run, too:
whoever knows what is to come can choose any of the policies."""

DERIVED = (BEST_STOCK, ORACLE)


class Results:
    """One set's records. Names are cells and systems, values come by ``value``."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = {record.key: record for record in records}
        if problems := unequal_work(self.records.values()):
            raise ValueError("these results cannot be compared:\n" + "\n".join(problems))

    def __bool__(self) -> bool:
        return bool(self.records)

    @cached_property
    def cells(self) -> list[str]:
        """The applications of known graphs first, then by name and number."""
        names = {cell for cell, _ in self.records}
        return sorted(names, key=lambda cell: (cell.partition("/")[0] not in DAGS, natural(cell)))

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Cells by what comes before the slash."""
        groups: dict[str, list[str]] = {}
        for cell in self.cells:
            groups.setdefault(cell.partition("/")[0], []).append(cell)
        return groups

    def complete(self, cells: Iterable[str]) -> list[str]:
        """Those of the cells in which every contender has run that at least half of them have.

        In a cell where a run was interrupted, best-stock would be the best of too few.
        """
        known: dict[str, set[str]] = {cell: set() for cell in cells}
        for cell, system in self.records:
            if cell in known and (system not in VARIANTS or is_oracle(system)):
                known[cell].add(system)
        counts = Counter(system for systems in known.values() for system in systems)
        usual = {system for system, count in counts.items() if 2 * count >= len(known)}
        return [cell for cell, systems in known.items() if usual <= systems]

    def systems(self, cells: Iterable[str]) -> list[str]:
        """Systems with figures on at least one of the cells, in the registry's order."""
        wanted = set(cells)
        found = {
            record.system
            for record in self.records.values()
            if record.cell in wanted and record.figures is not None
        }
        order = [name for name in all_systems() if name in found]
        return order + sorted(found - {*order, LOWER_BOUND})

    def contenders(self, cells: Iterable[str]) -> list[str]:
        """``systems`` without the variants of this extension, which have a section of their own."""
        return [name for name in self.systems(cells) if name not in VARIANTS or is_oracle(name)]

    def figures(self, cell: str, system: str) -> dict[str, Any] | None:
        record = self.records.get((cell, system))
        return None if record is None else record.figures

    def value(self, cell: str, system: str, metric: Metric) -> float | None:
        """The system's value, also of a derived one; None without a result."""
        if system in DERIVED:
            values = self.candidates(cell, system, metric)
            return values[metric.best(values)] if values else None
        return metric.of(self.figures(cell, system))

    def ratio(self, cell: str, system: str, metric: Metric) -> float | None:
        """The system's value as a multiple of the best of SGLang's own settings."""
        mine, best = self.value(cell, system, metric), self.value(cell, BEST_STOCK, metric)
        return mine / best if mine is not None and best else None

    @property
    def stock(self) -> list[str]:
        """SGLang's own settings among the systems: what best-stock is the best of."""
        own = {r.system for r in self.records.values() if r.setting.get("stock")}
        return [system for system in self.systems(self.cells) if system in own]

    def candidates(self, cell: str, derived: str, metric: Metric) -> dict[str, float]:
        """The systems that a derived one is the best of, with their values."""
        names = self.systems([cell])
        if derived == BEST_STOCK:
            names = [name for name in names if self.records[cell, name].setting.get("stock")]
        elif not any(map(is_oracle, names)):
            return {}
        values = {name: self.value(cell, name, metric) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def failures(self) -> list[Record]:
        failed = (record for record in self.records.values() if record.error is not None)
        return sorted(failed, key=lambda record: (natural(record.cell), record.system))


def points(cells: Iterable[str]) -> dict[str, list[str]]:
    """Cells of a group by what is varied; cells that differ in the seed only go together."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        point = cell.partition("/")[2].partition("-seed-")[0]
        found.setdefault(point, []).append(cell)
    return found


def is_oracle(system: str) -> bool:
    return system.startswith("oracle")


def load(folder: Path = store.FOLDER) -> dict[str, Results]:
    """Every set that has results, by name."""
    return {name: Results(store.read(name, folder=folder)) for name in store.sets(folder)}


def natural(name: str) -> list[Any]:
    """A sort key under which 2x comes before 10x."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [
        (0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)
    ]
