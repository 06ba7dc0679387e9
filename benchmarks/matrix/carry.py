"""Results of sources that have changed without changing a decision.

A change that is meant to decide nothing anew, such as a faster way to the same answer, makes every
result look outdated. A sample of the runs says whether it is one: a run has some ten thousand
steps, each of which follows from all before it, so a single other decision shows in its figures. If
every digit of the sample comes out again the others are taken to, too; if not, all are outdated.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from benchmarks.matrix import store
from benchmarks.matrix.check import changed
from benchmarks.matrix.runner import Task, run
from benchmarks.matrix.store import Record


def outdated(tasks: Iterable[Task], folder: Path = store.FOLDER) -> list[tuple[Task, Record]]:
    """Results of these runs that differ from what a run would be now in nothing but the sources.

    Failures are none: there are no figures by which to tell.
    """
    chosen = {(task.set_name, task.key): task for task in tasks}
    found = []
    for set_name in dict.fromkeys(task.set_name for task in chosen.values()):
        for record in store.read(set_name, folder=folder):
            task = chosen.get((set_name, record.key))
            if task is None or record.figures is None:
                continue
            now = task.record()
            if record.code != now.code and record.made_from[:-1] == now.made_from[:-1]:
                found.append((task, record))
    return found


def carry_over(
    results: Sequence[tuple[Task, Record]],
    *,
    sample: int,
    jobs: int,
    scratch: Path,
    folder: Path = store.FOLDER,
    seed: int = 0,
    on_record: Callable[[Task, Record], None] = lambda task, record: None,
) -> list[str]:
    """Runs a sample of each system's results again; those that come out again carry the rest.

    Rewrites, in ``folder``, what can be carried over. The sample itself is stored as new; of the
    others ``Record.carried_from`` says which sources made them.

    Args:
        results: as ``outdated`` found them.
        sample: how many results of each system and fingerprint, drawn from all sets. More are
            better evidence.
        scratch: where the sample's results go at first.

    Returns:
        The figures that are others now. Their systems' results stay as they are.

    Raises:
        ValueError: a sample of nothing would prove nothing.
    """
    if sample < 1:
        raise ValueError(f"sample: expected at least 1 run of each system, got {sample}")
    groups: dict[tuple[str, str], list[tuple[Task, Record]]] = {}
    for task, record in results:
        groups.setdefault((task.system, record.code), []).append((task, record))
    drawn = {
        name: random.Random(f"{seed}/{name}").sample(group, min(sample, len(group)))
        for name, group in groups.items()
    }
    flat = [task for pairs in drawn.values() for task, _ in pairs]
    records = run(flat, jobs=jobs, folder=scratch, on_record=on_record)
    again = dict(zip(map(_place, flat), records, strict=True))
    differences: list[str] = []
    for name, group in groups.items():
        pairs = ((was, again[_place(task)]) for task, was in drawn[name])
        if different := [line for was, now in pairs for line in changed(was, now)]:
            differences += different
            continue
        kept: dict[str, list[Record]] = {}
        for task, was in group:
            found = again.get(_place(task)) or _carried(task, was)
            kept.setdefault(task.set_name, []).append(found)
        for set_name, lines in kept.items():
            store.merge(set_name, lines, folder)
    return differences


def _place(task: Task) -> tuple[str, str, str]:
    return (task.set_name, *task.key)


def _carried(task: Task, record: Record) -> Record:
    made_by = record.carried_from or record.code
    return msgspec.structs.replace(record, code=task.record().code, carried_from=made_by)
