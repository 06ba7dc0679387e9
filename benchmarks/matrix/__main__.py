"""Runs cells of the matrix, or one run with every parameter on the command line.

    python -m benchmarks.matrix run --cells 'code_writer/*' --systems 'hicache*,tokencake' --jobs 2
    python -m benchmarks.matrix one --source code_writer --rate 0.2 --system hicache-lpm
    python -m benchmarks.matrix list
    python -m benchmarks.matrix check
    python -m benchmarks.matrix carry --systems 'tokencake*'

``run`` stores what it finds in benchmarks/results/matrix and does not repeat what it finds there
already, unless the cell, the system or the sources they depend on have changed. After a change of
the sources that is meant to decide nothing anew, ``carry`` keeps the results if a sample agrees.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from benchmarks.matrix import carry, check, one, sets, store, systems
from benchmarks.matrix.runner import Task, estimate_s, run, to_do
from benchmarks.matrix.store import Record
from benchmarks.matrix.work import unequal_work
from benchmarks.matrix.workloads import is_available


def main() -> int:
    arguments = parser().parse_args()
    try:
        return COMMANDS[arguments.command](arguments)
    except ValueError as error:
        raise SystemExit(f"{error}") from None


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    many = commands.add_parser("run", help="cells of a set through systems")
    listed = commands.add_parser("list", help="cells, systems, and how long they take")
    for command in (many, listed):
        command.add_argument("--set", default="standard", choices=sets.SETS, dest="set_name")
        command.add_argument("--cells", default="*", help="ids, comma-separated, with * and ?")
        command.add_argument("--systems", help="names, likewise; by default the set's own")
        command.add_argument("--output", type=Path, default=store.FOLDER, metavar="DIR")
        command.add_argument("--force", action="store_true", help="also what has a result")
        command.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    carried = commands.add_parser(
        "carry", help="keep results of changed sources, if a sample comes out again to the digit"
    )
    carried.add_argument("--set", nargs="+", default=list(sets.SETS), choices=sets.SETS, dest="of")
    carried.add_argument("--systems", default="*", help="names, comma-separated, with * and ?")
    carried.add_argument("--sample", type=int, default=3, help="runs of each system (default: 3)")
    carried.add_argument("--output", type=Path, default=store.FOLDER, metavar="DIR")
    carried.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    again = commands.add_parser("check", help="a small slice again: fails if a digit differs")
    again.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    one.add_arguments(commands.add_parser("one", help="a single run, figures as JSON"))
    return top


def run_command(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    chosen = possible(tasks(arguments.set_name, arguments.cells, arguments.systems))
    left = chosen if arguments.force else to_do(chosen, arguments.output)
    print(f"{_estimate(left, arguments)}; {len(chosen) - len(left)} have a result", file=sys.stderr)
    tqdm.monitor_interval = 0  # no thread: runs are forked from this process
    with tqdm(total=len(left), unit="run", disable=None) as progress:

        def note(task: Task, record: Record) -> None:
            progress.update()
            progress.set_postfix_str(f"{record.cell} {record.system}")
            if record.error is not None:
                progress.write(f"{record.cell} {record.system} failed: {_first_line(record)}")

        records = run(left, jobs=arguments.jobs, folder=arguments.output, on_record=note)
    names = {cell.id for cell in sets.cells(arguments.set_name)}
    store.keep_only(arguments.set_name, names, arguments.output)
    failed = [record for record in records if record.error is not None]
    print(f"{len(records) - len(failed)} done, {len(failed)} failed", file=sys.stderr)
    if problems := unequal_work(store.read(arguments.set_name, folder=arguments.output)):
        raise SystemExit("systems did unequal work:\n" + "\n".join(problems))
    return 0


def list_command(arguments: argparse.Namespace) -> int:
    chosen = tasks(arguments.set_name, arguments.cells, arguments.systems)
    for cell in dict.fromkeys(task.cell for task in chosen):
        print(json.dumps(cell.spec))
    for name in dict.fromkeys(task.system for task in chosen):
        what = systems.all_systems()[name].what if name != systems.LOWER_BOUND else "bound"
        print(f"{name}: {what}")
    left = chosen if arguments.force else to_do(chosen, arguments.output)
    print(_estimate(left, arguments))
    return 0


def carry_command(arguments: argparse.Namespace) -> int:
    chosen = [task for name in arguments.of for task in tasks(name, "*", arguments.systems)]
    found = carry.outdated(possible(chosen), arguments.output)
    with tempfile.TemporaryDirectory() as scratch:
        different = carry.carry_over(
            found,
            sample=arguments.sample,
            jobs=arguments.jobs,
            scratch=Path(scratch),
            folder=arguments.output,
            on_record=lambda task, _: print("again:", *task.key, file=sys.stderr),
        )
    left = carry.outdated(possible(chosen), arguments.output)
    print(f"{len(found) - len(left)} results carried over, {len(left)} outdated", file=sys.stderr)
    if different:
        print("\n".join(different))
        print("What is outdated is to be run again: python -m benchmarks.matrix run")
    return 1 if different else 0


def check_command(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        found = check.differences(Path(scratch), jobs=arguments.jobs)
    if not found:
        print("every committed figure of the slice came out again")
        return 0
    print("\n".join(found))
    print(
        "If the change is meant: python -m benchmarks.matrix run --set check, and commit the result"
    )
    return 1


def tasks(set_name: str, cells: str, system_names: str | None) -> list[Task]:
    """Every chosen system on every chosen cell: seed by seed, and of a seed cell by cell.

    So a run that is interrupted leaves whole comparisons behind.
    """
    by_id = {cell.id: cell for cell in sets.cells(set_name)}
    chosen = [by_id[name] for name in systems.matching(list(by_id), cells, "cells")]
    return [
        Task(set_name, cell, system, series=(cell.id, system) in sets.PLOTTED)
        for cell in sorted(chosen, key=lambda cell: cell.workload.seed)
        for system in systems.names(system_names or sets.usual_systems(set_name, cell))
    ]


def possible(chosen: list[Task]) -> list[Task]:
    """Those whose data are here; says which cells are not. What results they have is kept."""
    for cell in dict.fromkeys(task.cell for task in chosen):
        if not is_available(cell.workload):
            print(f"{cell.id}: left out, its data set is not here", file=sys.stderr)
    return [task for task in chosen if is_available(task.cell.workload)]


def _estimate(left: list[Task], arguments: argparse.Namespace) -> str:
    minutes = estimate_s(left, arguments.output) / arguments.jobs / 60
    return f"{len(left)} runs, about {minutes:.0f} minutes with {arguments.jobs} at a time"


def _first_line(record: Record) -> str:
    return (record.error or "").strip().splitlines()[0][:200]


COMMANDS = {
    "run": run_command,
    "one": one.command,
    "list": list_command,
    "check": check_command,
    "carry": carry_command,
}


def leave(status: int) -> NoReturn:
    """Ends the process without the exit handlers, in which SGLang's libraries report leaks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
