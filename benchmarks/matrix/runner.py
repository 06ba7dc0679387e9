"""Many runs: which are still to do, each in a process of its own, every outcome recorded."""

import re
import signal
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.matrix import store
from benchmarks.matrix.cells import Cell
from benchmarks.matrix.execute import Outcome, execute
from benchmarks.matrix.fingerprint import fingerprint, versions
from benchmarks.matrix.store import Machine, Record, Series
from benchmarks.matrix.systems import LOWER_BOUND, all_systems, setting
from tokencake_sglang.timewarp.forks import ChildFailed, map_in_forks

LIMIT_S = 3600
"""Real seconds after which a run counts as failed."""

MESSAGE_CHARACTERS = 500
"""Of a failure's message, at most."""

USUAL_S = 20.0
"""Taken for a run that nobody has done yet, in estimates."""


class Task(msgspec.Struct, frozen=True):
    set_name: str
    cell: Cell
    system: str
    series: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.cell.id, self.system

    def record(self, **outcome: Any) -> Record:
        settings = {} if self.system == LOWER_BOUND else setting(all_systems()[self.system])
        return Record(
            cell=self.cell.id,
            system=self.system,
            spec=self.cell.spec,
            setting=settings,
            code=fingerprint(self.system),
            versions=versions(),
            **outcome,
        )


class Failure(msgspec.Struct, frozen=True):
    message: str
    retry: bool = False


class TimeLimit(RuntimeError):
    """A run that took too long in real time."""


def to_do(tasks: Iterable[Task], folder: Path = store.FOLDER) -> list[Task]:
    """Tasks without a result made from the same cell, setting and sources."""
    held: dict[str, dict[tuple[str, str], Record]] = {}
    left = []
    for task in tasks:
        if task.set_name not in held:
            held[task.set_name] = {r.key: r for r in store.read(task.set_name, folder=folder)}
        known = held[task.set_name].get(task.key)
        if known is None or known.retry or known.made_from != task.record().made_from:
            left.append(task)
    return left


def estimate_s(tasks: Iterable[Task], folder: Path = store.FOLDER) -> float:
    """Real seconds of one core, from how long these runs, or their cell's, took before."""
    total_s = 0.0
    for set_name, group in _by_set(tasks).items():
        machines = store.read(set_name, Machine, folder)
        took_s = {machine.key: machine.real_s for machine in machines}
        of_cell: dict[str, list[float]] = {}
        for machine in machines:
            if machine.system != LOWER_BOUND:
                of_cell.setdefault(machine.cell, []).append(machine.real_s)
        for task in group:
            usual = of_cell.get(task.cell.id, [USUAL_S])
            total_s += took_s.get(task.key, sum(usual) / len(usual))
    return total_s


def run(
    tasks: Sequence[Task],
    *,
    jobs: int,
    folder: Path = store.FOLDER,
    on_record: Callable[[Task, Record], None] = lambda task, record: None,
) -> list[Record]:
    """Runs the tasks, ``jobs`` at a time, and stores each outcome as it comes.

    A run that raises, is killed or takes too long is recorded as failed; the others go on.
    """
    records: dict[int, Record] = {}
    waiting = list(range(len(tasks)))

    def done(index: int, outcome: Outcome | Failure) -> None:
        records[index] = _store(tasks[index], outcome, folder)
        on_record(tasks[index], records[index])

    def batch(indices: Sequence[int], processes: int) -> None:
        map_in_forks(
            _attempt,
            [(tasks[index],) for index in indices],
            processes=processes,
            on_result=lambda position, outcome: done(indices[position], outcome),
        )

    while waiting := [index for index in waiting if index not in records]:
        try:
            batch(waiting, jobs)
        except ChildFailed:
            # One of those under way was killed from outside and took the others with it.
            for index in [index for index in waiting if index not in records][:jobs]:
                try:
                    batch([index], 1)
                except ChildFailed as failure:
                    done(index, Failure(str(failure), retry=True))
    return [records[index] for index in range(len(tasks))]


def _attempt(task: Task) -> Outcome | Failure:
    """In the child: the run, or why it failed."""
    warnings.simplefilter("ignore")  # of the libraries, the same for every run
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT_S)
    try:
        return execute(task.cell, task.system, series=task.series)
    except TimeLimit as limit:
        return Failure(str(limit), retry=True)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - recorded; refusals are SystemExit
        # Without addresses: the same failure is the same text. SGLang's may have the whole tree.
        message = re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")
        return Failure(textwrap.shorten(message, MESSAGE_CHARACTERS, placeholder=" …"))


def _too_long(*_: object) -> None:
    raise TimeLimit(f"not done within {LIMIT_S} s of real time")


def _store(task: Task, outcome: Outcome | Failure, folder: Path) -> Record:
    if isinstance(outcome, Failure):
        record = task.record(error=outcome.message, retry=outcome.retry)
        store.merge(task.set_name, [record], folder)
        return record
    record = task.record(workload=outcome.workload, figures=outcome.figures)
    machine = Machine(
        cell=task.cell.id,
        system=task.system,
        real_s=round(outcome.real_s, 1),
        figures=outcome.machine,
    )
    store.merge(task.set_name, [record], folder)
    store.merge(task.set_name, [machine], folder)
    if task.series:
        series = Series(
            cell=task.cell.id,
            system=task.system,
            occupancy=outcome.occupancy,
            gantt=outcome.gantt,
        )
        store.merge(task.set_name, [series], folder)
    return record


def _by_set(tasks: Iterable[Task]) -> dict[str, list[Task]]:
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.set_name, []).append(task)
    return groups
