"""How long a tool call will last: the caller's word, else the tool's history, else a default."""

from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

HISTORY_PER_TOOL = 32
MAX_TOOLS = 4096


class Source(StrEnum):
    GIVEN = "given"
    HISTORY = "history"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A call's expected length in seconds, and where the number comes from."""

    duration_s: float
    source: Source


class DurationModel:
    """Per-tool history with bounded memory.

    The median of a tool's last calls, because tool times are heavy-tailed: one ten-minute test
    run must not keep the KV of every later 100 ms call out of the device.
    """

    def __init__(self, default_s: float) -> None:
        self.default_s = default_s
        self._history: OrderedDict[str, deque[float]] = OrderedDict()

    def predict(self, tool: str, given_s: float | None = None) -> Prediction:
        """What to expect of a call that starts now; changes nothing."""
        if given_s is not None:
            return Prediction(given_s, Source.GIVEN)
        history = self._history.get(tool)
        if history:
            return Prediction(median(history), Source.HISTORY)
        return Prediction(self.default_s, Source.DEFAULT)

    def observe(self, tool: str, duration_s: float) -> None:
        """Learns from a finished call; the tool longest unseen is forgotten when there are many."""
        history = self._history.setdefault(tool, deque(maxlen=HISTORY_PER_TOOL))
        history.append(max(0.0, duration_s))
        self._history.move_to_end(tool)
        while len(self._history) > MAX_TOOLS:
            self._history.popitem(last=False)
