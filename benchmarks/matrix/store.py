"""Results on disk: one JSON line a run, in files that git can hold.

``SET.jsonl`` holds what must reproduce to the last digit; ``SET.series.jsonl`` what only plots
need; ``SET.machine.jsonl`` how long the runs really took, which never reproduces.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

FOLDER = Path(__file__).parents[1] / "results" / "matrix"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of one system on one cell. Exactly one of ``figures`` and ``error`` is given.

    ``code`` is the fingerprint of the sources that the run depended on; ``workload`` the digest of
    the requests that were asked.
    """

    cell: str
    system: str
    spec: dict[str, Any]
    setting: dict[str, Any]
    code: str
    versions: dict[str, str]
    workload: str = ""
    figures: dict[str, Any] | None = None
    error: str | None = None
    retry: bool = False
    """Whether the failure was the machine's (time, memory) and may not come again."""
    carried_from: str = ""
    """The fingerprint of the sources that did make it, where ``code``'s were found to give the
    same figures (``carry``)."""

    @property
    def key(self) -> tuple[str, str]:
        return self.cell, self.system

    @property
    def made_from(self) -> tuple[Any, ...]:
        """A run with an equal one would give an equal result."""
        return self.spec, self.setting, self.code


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """What only a plot needs of a run."""

    cell: str
    system: str
    occupancy: Any = None
    gantt: Any = None

    @property
    def key(self) -> tuple[str, str]:
        return self.cell, self.system


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """How long a run really took, here and then."""

    cell: str
    system: str
    real_s: float
    figures: dict[str, Any] = {}

    @property
    def key(self) -> tuple[str, str]:
        return self.cell, self.system


Line = TypeVar("Line", Record, Series, Machine)

_SUFFIX: dict[type, str] = {Record: "", Series: ".series", Machine: ".machine"}
_encoder = msgspec.json.Encoder(order="sorted")


def path(set_name: str, kind: type = Record, folder: Path = FOLDER) -> Path:
    return folder / f"{set_name}{_SUFFIX[kind]}.jsonl"


def read(set_name: str, kind: type[Line] = Record, folder: Path = FOLDER) -> list[Line]:  # type: ignore[assignment]
    """All lines of a set's file; none if there is no file."""
    file = path(set_name, kind, folder)
    return msgspec.json.Decoder(kind).decode_lines(file.read_bytes()) if file.exists() else []


def sets(folder: Path = FOLDER) -> Iterator[str]:
    """Names of the sets that have results."""
    for file in sorted(folder.glob("*.jsonl")):
        if "." not in file.stem:
            yield file.stem


def merge(set_name: str, lines: Iterable[Line], folder: Path = FOLDER) -> None:
    """Puts lines into the set's file, in place of older ones of the same cell and system.

    Sorted by cell and system, so that the same results are the same bytes. Several processes may
    merge into one file.
    """
    by_kind: dict[type[Line], list[Line]] = {}
    for line in lines:
        by_kind.setdefault(type(line), []).append(line)
    for kind, new in by_kind.items():
        file = path(set_name, kind, folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            held = {known.key: known for known in read(set_name, kind, folder)}
            held |= {line.key: line for line in new}
            written = file.with_suffix(".part")
            encoded = (_encoder.encode(held[key]) + b"\n" for key in sorted(held))
            written.write_bytes(b"".join(encoded))
            written.replace(file)


def keep_only(set_name: str, cells: set[str], folder: Path = FOLDER) -> None:
    """Drops the lines of cells that the set no longer has."""
    for kind in _SUFFIX:
        file = path(set_name, kind, folder)
        if not file.exists():
            continue
        with _locked(folder):
            kept = [line for line in read(set_name, kind, folder) if line.cell in cells]
            file.write_bytes(b"".join(_encoder.encode(line) + b"\n" for line in kept))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
