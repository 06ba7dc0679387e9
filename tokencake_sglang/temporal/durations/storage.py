"""A model's state as plain values, and in a file that is whole or not there."""

import os
import tempfile
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np

from tokencake_sglang.temporal.durations.grid import Floats
from tokencake_sglang.temporal.durations.history import LEVELS, Histogram, Trust

FORMAT = "tokencake-durations"
VERSION = 2
MAX_FILE_BYTES = 64 * 2**20

StoredKey = tuple[int, str | None, str | None, str | int | None]
Tool = str | None


class StoredHistogram(msgspec.Struct, frozen=True, array_like=True):
    """``weights``: little-endian doubles."""

    weights: bytes
    total: float
    latest: float
    last: float
    steps: float

    @classmethod
    def of(cls, node: Histogram) -> "StoredHistogram":
        return cls(
            node.weights.astype("<f8").tobytes(), node.total, node.latest, node.last, node.steps
        )

    def restore(self, bins: int) -> Histogram:
        weights: Floats = np.frombuffer(self.weights, "<f8").astype(np.float64)
        if len(weights) != bins:
            raise ValueError(f"weights: expected {bins}, got {len(weights)}")
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("weights: expected finite numbers from 0")
        if not (0.0 <= self.total < float("inf") and 0.0 < self.latest < float("inf")):
            raise ValueError(f"total, latest: got {self.total!r}, {self.latest!r}")
        if not (0.0 <= self.last < bins and 0.0 <= self.steps < bins):
            raise ValueError(f"last, steps: got {self.last!r}, {self.steps!r}")
        node = Histogram(bins)
        node.weights, node.total, node.latest = weights, self.total, self.latest
        node.last, node.steps = self.last, self.steps
        return node


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """What says of a state whether the rest of it can be read."""

    format: str = FORMAT
    version: int = VERSION


class State(Heading, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a model has learned, in the order in which it would be forgotten."""

    default_s: float
    nodes: list[tuple[StoredKey, StoredHistogram]]
    level_scores: list[list[float]]
    ratios: StoredHistogram
    scores: list[float]
    callers: list[tuple[tuple[Tool, str], StoredHistogram, list[float]]]

    def check(self) -> None:
        """Raises ValueError where a value cannot be one of this version's."""
        expected = [len(Trust(level).scores) for level in LEVELS]
        if [len(scores) for scores in self.level_scores] != expected:
            raise ValueError(f"level_scores: expected {expected} numbers")
        if not 0.0 <= self.default_s < float("inf"):
            raise ValueError(f"default_s: expected seconds, got {self.default_s!r}")
        if any(key[0] not in range(len(LEVELS)) or node.total <= 0.0 for key, node in self.nodes):
            raise ValueError(f"nodes: expected levels below {len(LEVELS)}, none of them empty")
        of_callers = [self.scores, *(scores for _, _, scores in self.callers)]
        if any(len(scores) != 3 for scores in of_callers):
            raise ValueError("scores: expected 3")
        if not np.isfinite([*chain(*self.level_scores), *chain(*of_callers)]).all():
            raise ValueError("level_scores, scores: expected finite numbers")


def encode(state: State) -> bytes:
    return msgspec.msgpack.encode(state)


def decode(content: bytes) -> State:
    """Raises ValueError for what ``encode`` of this version has not made."""
    try:
        written_by = msgspec.msgpack.decode(content, type=Heading)
        if written_by != Heading():
            raise ValueError(
                f"expected {FORMAT!r} of version {VERSION}, "
                f"got {written_by.format!r:.60} of version {written_by.version}"
            )
        state = msgspec.msgpack.decode(content, type=State)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None
    state.check()
    return state


def read(path: Path) -> bytes:
    """Raises ValueError where it cannot be read."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{size} bytes, at most {MAX_FILE_BYTES} are accepted")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror) from error


def write(path: Path, content: bytes) -> None:
    """Replaces the file at once: a reader or a crash sees the old one or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
