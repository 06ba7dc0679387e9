"""One run with everything on the command line."""

import argparse
import json
from typing import Literal, get_args, get_origin

import msgspec

from benchmarks.matrix import sets, systems
from benchmarks.matrix.cells import Cell
from benchmarks.matrix.execute import execute
from benchmarks.matrix.fingerprint import versions
from benchmarks.matrix.workloads import WorkloadSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", default="tokencake", help="see the list command")
    parser.add_argument("--cell", help="start from this cell of the standard matrix")
    parser.add_argument("--flags", help="further server flags, space-separated")
    parser.add_argument("--output", metavar="FILE", help="write the result there, too")
    for field in (*_workload_fields(), *_cell_fields()):
        kind = _kind(field)
        option = "--" + field.name.replace("_", "-")
        if kind is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None)
        else:
            parser.add_argument(option, type=kind, choices=_choices(field))


def command(arguments: argparse.Namespace) -> int:
    cell = cell_of(arguments)
    flags = tuple((arguments.flags or "").split())
    if arguments.system not in (systems.LOWER_BOUND, *systems.all_systems()):
        raise ValueError(
            f"system: expected one of {', '.join(systems.names())}, got {arguments.system!r}"
        )
    outcome = execute(cell, arguments.system, flags=flags)
    result = {
        "spec": cell.spec,
        "system": arguments.system,
        "flags": flags,
        "versions": versions(),
        "workload": outcome.workload,
        "figures": outcome.figures,
        "machine": {"real_s": round(outcome.real_s, 1), **outcome.machine},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        with open(arguments.output, "w") as file:
            file.write(text + "\n")
    return 0


def cell_of(arguments: argparse.Namespace) -> Cell:
    """The cell that the options describe: that of ``--cell`` or the A800's, changed by the rest."""
    if arguments.cell:
        by_id = {cell.id: cell for cell in sets.cells("standard")}
        base = by_id[systems.matching(list(by_id), arguments.cell, "cell")[0]]
    else:
        base = sets.dag("code_writer", 0.2)
        if arguments.source and arguments.source not in sets.DAGS:
            base = msgspec.structs.replace(base, workload=WorkloadSpec(source=arguments.source))
    changed = _given(arguments, _cell_fields())
    if "pool_tokens" in changed and "host_tokens" not in changed:
        changed["host_tokens"] = 10 * changed["pool_tokens"]
    workload = msgspec.structs.replace(base.workload, **_given(arguments, _workload_fields()))
    return msgspec.structs.replace(base, id="one", workload=workload, **changed)


def _given(arguments: argparse.Namespace, fields: list[msgspec.structs.FieldInfo]) -> dict:
    values = {field.name: getattr(arguments, field.name) for field in fields}
    return {name: value for name, value in values.items() if value is not None}


def _workload_fields() -> list[msgspec.structs.FieldInfo]:
    return list(msgspec.structs.fields(WorkloadSpec))


def _cell_fields() -> list[msgspec.structs.FieldInfo]:
    return [f for f in msgspec.structs.fields(Cell) if f.name not in ("id", "workload")]


def _choices(field: msgspec.structs.FieldInfo) -> tuple[str, ...] | None:
    return get_args(field.type) if get_origin(field.type) is Literal else None


def _kind(field: msgspec.structs.FieldInfo) -> type:
    """The type that an option's text is turned into; of ``X | None`` it is X."""
    of = field.type
    if of in (bool, int, float, str):
        return of
    members = [kind for kind in getattr(of, "__args__", ()) if kind is not type(None)]
    return members[0] if members and isinstance(members[0], type) else str
