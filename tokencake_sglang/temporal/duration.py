"""How long a tool call will last: a distribution from history, the caller's word and the clock."""

import math
from collections import OrderedDict
from enum import StrEnum
from pathlib import Path
from typing import Self

from msgspec.structs import replace

from tokencake_sglang.temporal.durations import storage
from tokencake_sglang.temporal.durations.distribution import Distribution
from tokencake_sglang.temporal.durations.estimates import Estimates
from tokencake_sglang.temporal.durations.grid import (
    BINS,
    LEAST_S,
    MOST_S,
    RATIO_BINS,
    bin_of,
    log_logistic,
)
from tokencake_sglang.temporal.durations.history import LEVELS, CallFeatures, History, Trust
from tokencake_sglang.temporal.durations.stages import in_sequence
from tokencake_sglang.temporal.durations.storage import State, StoredHistogram

MAX_STATE_BYTES = 20 * 2**20
"""A model's memory, however many calls of whatever names (of at most 256 characters) it sees."""


class Source(StrEnum):
    GIVEN = "given"
    HISTORY = "history"
    DEFAULT = "default"


class DurationModel:
    """Learns from finished calls; the same calls in the same order give the same predictions.

    ``expect`` and ``observe`` are for a scheduler's loop: some ten microseconds each. Ask what they
    answer for its median rather than its mean: one ten-minute test run must not keep the KV of
    every later 100 ms call out of the device.

    Args:
        default_s: the median length of a call while nothing is known of any.
    """

    def __init__(self, default_s: float) -> None:
        self.default_s = default_s
        self._history = History(log_logistic(max(default_s, LEAST_S), 1.0))
        self._estimates = Estimates()

    # -- distributions ------------------------------------------------------------------------

    def expect(self, call: CallFeatures) -> Distribution:
        """What to expect of a call that starts now; changes nothing."""
        if call.stages and self._knows_stages(call, call.stages):
            staged = in_sequence([self._stage(call, stage) for stage in call.stages])
            mass = staged.mass
        else:
            mass = self._history.mass(call)
        if call.given_s is not None:
            caller, known = (call.tool, call.agent_type), self._history.count(call)
            mass = self._estimates.mix(caller, known, call.given_s, mass)
        return Distribution(mass)

    def expect_after(self, call: CallFeatures, finished: int, elapsed_s: float) -> Distribution:
        """Of a running call whose first ``finished`` stages took ``elapsed_s``; its whole length.

        Where a stage to come has no history, what the whole call was expected to take.
        """
        left = call.stages[finished:]
        if not self._knows_stages(call, left):
            return self.expect(replace(call, stages=()))
        return in_sequence([self._stage(call, stage) for stage in left], elapsed_s)

    def source(self, call: CallFeatures) -> Source:
        """What most of ``expect``'s answer rests on."""
        known = self._history.count(call)
        if call.given_s is not None:
            history, *_ = self._estimates.weights((call.tool, call.agent_type), known)
            if history < 0.5:
                return Source.GIVEN
        return Source.HISTORY if known else Source.DEFAULT

    def _knows_stages(self, call: CallFeatures, stages: tuple[str, ...]) -> bool:
        return all(self._history.count(_of_stage(call, stage)) for stage in stages)

    def _stage(self, call: CallFeatures, stage: str) -> Distribution:
        return Distribution(self._history.mass(_of_stage(call, stage)))

    def observe(self, call: CallFeatures | str, duration_s: float) -> None:
        """Learns from a finished call; a bare name is its tool.

        Raises:
            ValueError: a length that is no number; nothing is learned then.
        """
        if math.isnan(duration_s):
            raise ValueError(f"duration_s: expected seconds, got {duration_s!r}")
        if isinstance(call, str):
            call = CallFeatures(tool=call)
        duration_s = min(max(0.0, duration_s), MOST_S)
        if call.given_s is not None:
            before = self._history.mass(call)
            caller, index = (call.tool, call.agent_type), bin_of(duration_s)
            self._estimates.observe(caller, call.given_s, duration_s, index, before)
        self._history.observe(call, duration_s)

    def observe_stage(self, call: CallFeatures, stage: str, duration_s: float) -> None:
        """Learns from one finished stage of a call; the whole call is told to ``observe``."""
        self._history.observe(_of_stage(call, stage), min(max(0.0, duration_s), MOST_S))

    # -- across restarts ----------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """All that was learnt; ``from_bytes`` makes an equal model of it."""
        return storage.encode(self._state())

    @classmethod
    def from_bytes(cls, content: bytes, default_s: float | None = None) -> Self:
        """Raises ValueError for what ``to_bytes`` of this version has not made.

        Args:
            default_s: in place of the one that the model had, which is no part of what was learnt.
        """
        state = storage.decode(content)
        return cls._of(state, state.default_s if default_s is None else default_s)

    def save(self, path: Path) -> None:
        """Replaces the file in one step."""
        storage.write(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path, default_s: float | None = None) -> Self:
        """As ``from_bytes``. Raises ValueError, naming the file and what to do."""
        try:
            return cls.from_bytes(storage.read(path), default_s)
        except ValueError as error:
            raise ValueError(
                f"{path}: not a file of durations that this version can read ({error}); "
                "remove it or name another one to begin anew"
            ) from error

    def _state(self) -> State:
        history, estimates = self._history, self._estimates
        return State(
            default_s=self.default_s,
            nodes=[(key, StoredHistogram.of(node)) for key, node in history.nodes.items()],
            level_scores=[list(trust.scores) for trust in history.trust],
            ratios=StoredHistogram.of(estimates.ratios),
            scores=list(estimates.scores),
            callers=[
                (caller, StoredHistogram.of(ratios), list(scores))
                for caller, (ratios, scores) in estimates.callers.items()
            ],
        )

    @classmethod
    def _of(cls, state: State, default_s: float) -> Self:
        model = cls(default_s)
        history, estimates = model._history, model._estimates
        history.nodes = OrderedDict((key, node.restore(BINS)) for key, node in state.nodes)
        history.trust = [
            Trust(level, list(scores))
            for level, scores in zip(LEVELS, state.level_scores, strict=True)
        ]
        estimates.ratios = state.ratios.restore(RATIO_BINS)
        estimates.scores = list(state.scores)
        estimates.callers = OrderedDict(
            (caller, (ratios.restore(RATIO_BINS), list(scores)))
            for caller, ratios, scores in state.callers
        )
        return model


def _of_stage(call: CallFeatures, stage: str) -> CallFeatures:
    """A stage's history is that of a tool of its own; NUL is in no tool's name by accident."""
    return replace(call, tool=f"{call.tool or ''}\0{stage}", given_s=None, stages=())


__all__ = [
    "MAX_STATE_BYTES",
    "CallFeatures",
    "Distribution",
    "DurationModel",
    "Source",
]
