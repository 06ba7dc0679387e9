"""A model's state as plain values, and in a file that is whole or not there."""

import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tokencake_sglang.temporal.durations.grid import Floats
from tokencake_sglang.temporal.durations.history import LEVELS, Histogram, Trust

FORMAT = "tokencake-durations"
VERSION = 1
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
        node = Histogram(bins)
        node.weights, node.total, node.latest = weights, self.total, self.latest
        node.last, node.steps = self.last, self.steps
        return node


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a model has learned, in the order in which it would be forgotten."""

    format: str = FORMAT
    version: int = VERSION
    default_s: float
    nodes: list[tuple[StoredKey, StoredHistogram]]
    level_scores: list[list[float]]
    ratios: StoredHistogram
    scores: list[float]
    callers: list[tuple[tuple[Tool, str], StoredHistogram, list[float]]]
    recent: list[tuple[Tool, list[float]]]

    def check(self) -> None:
        """Raises ValueError where a value cannot be one of this version's."""
        if self.format != FORMAT:
            raise ValueError(f"format: expected {FORMAT!r}, got {self.format!r}")
        if self.version != VERSION:
            raise ValueError(f"version: expected {VERSION}, got {self.version!r}")
        expected = [len(Trust(level).scores) for level in LEVELS]
        if [len(scores) for scores in self.level_scores] != expected:
            raise ValueError(f"level_scores: expected {expected} numbers")
        if not 0.0 <= self.default_s < float("inf"):
            raise ValueError(f"default_s: expected seconds, got {self.default_s!r}")
        if any(key[0] not in range(len(LEVELS)) or node.total <= 0.0 for key, node in self.nodes):
            raise ValueError(f"nodes: expected levels below {len(LEVELS)}, none of them empty")
        if any(len(scores) != 3 for scores in (self.scores, *(c[2] for c in self.callers))):
            raise ValueError("scores: expected 3")


def read(path: Path) -> State:
    """Raises ValueError, naming the file, where it is not one of ours or cannot be read."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{size} bytes, at most {MAX_FILE_BYTES} are accepted")
        state = msgspec.msgpack.decode(path.read_bytes(), type=State)
        state.check()
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise ValueError(
            f"{path}: not a file of durations that this version can read ({error}); "
            "remove it to begin anew"
        ) from error
    return state


def write(path: Path, state: State) -> None:
    """Replaces the file at once: a reader or a crash sees the old one or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.msgpack.encode(state))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_dict(state: State) -> dict[str, Any]:
    builtins: dict[str, Any] = msgspec.to_builtins(state)
    return builtins
