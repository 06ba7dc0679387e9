"""The checklist's race check on a copy stream that is as late as it can be; prints its rows.

A program, since a process can hold one scheduler: ``python -m tests.benchmarks.race_with_late_copies``.
"""

import json
import tempfile
from pathlib import Path

import pytest

from benchmarks.gpu_checks import Rig, Setup, race
from tests.engine.test_in_flight import LateCopies

SETUP = Setup(
    device="cpu",
    flags=("--hicache-ratio", "4"),
    kv_tokens=2048,
    chunk=512,
    prefix=512,
    suffix=32,
    output=6,
    pieces=(512, 128),
    repetitions=3,
)


class LateRig(Rig):
    """Loads stay in flight until the checklist, or a forward pass, waits for them."""

    late: LateCopies | None = None

    def arrange(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.late = LateCopies(self.harness, monkeypatch)
        count = self.cache._count_ready_acks
        monkeypatch.setattr(
            self.cache, "_count_ready_acks", lambda queue: 0 if self.late.pending else count(queue)
        )

    def _poll(self, done, what, limit_s=60.0) -> None:
        if self.late is not None:
            self.late.arrive()
        super()._poll(done, what, limit_s)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as monkeypatch:
        rig = LateRig(SETUP, Path(directory))
        rig.arrange(monkeypatch)
        print(json.dumps(race(rig)["kinds"]))


if __name__ == "__main__":
    main()
