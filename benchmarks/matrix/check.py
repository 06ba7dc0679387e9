"""Do committed figures come out again, to the last digit?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.matrix import sets, store
from benchmarks.matrix.runner import Task, run
from benchmarks.matrix.store import Record

SET = "check"


def differences(scratch: Path, *, jobs: int, folder: Path = store.FOLDER) -> list[str]:
    """Runs again what the set's file has, into ``scratch``; says what is not as committed."""
    cells = {cell.id: cell for cell in sets.cells(SET)}
    committed = store.read(SET, folder=folder)
    if not committed:
        return [f"{store.path(SET, folder=folder).name}: no results to compare with"]
    if gone := sorted({record.cell for record in committed} - cells.keys()):
        return [f"{cell}: no such cell any more" for cell in gone]
    tasks = [Task(SET, cells[record.cell], record.system) for record in committed]
    again = run(tasks, jobs=jobs, folder=scratch)
    return [line for pair in zip(committed, again, strict=True) for line in changed(*pair)]


def changed(committed: Record, again: Record) -> Iterator[str]:
    """The figures in which two records of the same run differ."""
    where = f"{committed.cell} {committed.system}"
    if committed.spec != again.spec:
        yield f"{where}: the cell is another: {again.spec}, was {committed.spec}"
    elif committed.error != again.error:
        yield f"{where}: failed with {again.error!r}, was {committed.error!r}"
    else:
        for path, was, now in _unequal(committed.figures, again.figures):
            yield f"{where}: {path} is {now}, was {was}"


def _unequal(was: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was.keys() | now.keys()):
            yield from _unequal(was.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif was != now:
        yield path, was, now
