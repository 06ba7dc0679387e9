"""What the model is compared with. A forecast is equally likely lengths; one of them is a point."""

import bisect
import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import numpy as np

from benchmarks.durations.traces import ToolCall
from tokencake_sglang.temporal.duration import CallFeatures, DurationModel
from tokencake_sglang.temporal.durations.grid import EDGES_S

DEFAULT_S = 1.0
"""For a tool never seen: the paper's code assumes one second, and so does every forecaster here."""


class Forecast(Protocol):
    def crps(self, y: float) -> float:
        """∫ (F(t) − 1[t ≥ y])² dt in seconds (Gneiting & Raftery 2007, eq. 20)."""

    def log_crps(self, y: float, grain_s: float) -> float:
        """The same over ln t, lengths below the grain taken as the grain."""

    def quantile(self, q: float) -> float: ...


class Points:
    def __init__(self, sorted_s: list[float]) -> None:
        self.sorted_s = sorted_s

    @staticmethod
    def _crps(points: np.ndarray, y: float) -> float:
        """E|X − y| − E|X − X'| / 2 (the same, eq. 21)."""
        count = len(points)
        ranks = 2.0 * np.arange(1, count + 1) - count - 1.0
        return float(np.abs(points - y).mean() - (ranks * points).sum() / count**2)

    def crps(self, y: float) -> float:
        return self._crps(np.array(self.sorted_s), y)

    def log_crps(self, y: float, grain_s: float) -> float:
        points = np.log(np.maximum(self.sorted_s, grain_s))
        return self._crps(points, math.log(max(y, grain_s)))

    def quantile(self, q: float) -> float:
        count = len(self.sorted_s)
        return self.sorted_s[min(int(q * count), count - 1)]


class Binned:
    """A distribution function that is linear between edges."""

    def __init__(self, cumulative: np.ndarray) -> None:
        self.cumulative = cumulative

    @staticmethod
    def _crps(edges: np.ndarray, f: np.ndarray, y: float) -> float:
        widths = np.diff(edges)
        k = min(max(int(edges.searchsorted(y, "right")) - 1, 0), len(widths) - 1)
        a, b = f[:-1], f[1:]
        below = widths * (a * a + a * b + b * b) / 3
        a, b = 1.0 - a, 1.0 - b
        above = widths * (a * a + a * b + b * b) / 3
        part = min(max((y - edges[k]) / widths[k], 0.0), 1.0)
        p, q = f[k], f[k + 1]
        m = p + (q - p) * part
        u, v, w = 1.0 - m, 1.0 - q, p
        inside = part * (w * w + w * m + m * m) + (1.0 - part) * (u * u + u * v + v * v)
        return float(below[:k].sum() + widths[k] * inside / 3 + above[k + 1 :].sum())

    def crps(self, y: float) -> float:
        return self._crps(EDGES_S, self.cumulative, y)

    def log_crps(self, y: float, grain_s: float) -> float:
        first = int(EDGES_S.searchsorted(grain_s, "right"))
        edges = np.log(np.concatenate(([grain_s * (1 - 1e-9), grain_s], EDGES_S[first:])))
        at_grain = float(np.interp(grain_s, EDGES_S, self.cumulative))
        f = np.concatenate(([0.0, at_grain], self.cumulative[first:]))
        return self._crps(edges, f, math.log(max(y, grain_s)))

    def quantile(self, q: float) -> float:
        return float(np.interp(q, self.cumulative, EDGES_S))

    def rank(self, y: float) -> float:
        """F(y), uniform if the forecasts are calibrated."""
        return float(np.interp(y, EDGES_S, self.cumulative))


class Forecaster(Protocol):
    def forecast(self, call: ToolCall) -> Forecast: ...

    def observe(self, call: ToolCall) -> None: ...


@dataclass
class PaperBlend:
    """Eq. 1 of arXiv 2510.18586v2, with the constants of the authors' code (it gives none).

    α·t_req + (1−α)·t_hist with α = ½; t_hist an EWMA of weight ½ by agent type and tool. One second
    for what is unknown.
    """

    history_s: dict[tuple[str, str], float] = field(default_factory=dict)

    def forecast(self, call: ToolCall) -> Points:
        history_s = self.history_s.get((call.agent_type, call.tool))
        if call.given_s is None:
            return Points([DEFAULT_S if history_s is None else history_s])
        if history_s is None:
            return Points([call.given_s])
        return Points([0.5 * call.given_s + 0.5 * history_s])

    def observe(self, call: ToolCall) -> None:
        key = (call.agent_type, call.tool)
        known_s = self.history_s.get(key, call.duration_s)
        self.history_s[key] = 0.5 * known_s + 0.5 * call.duration_s


@dataclass
class Ewma:
    """Per tool."""

    weight: float
    history_s: dict[str, float] = field(default_factory=dict)

    def forecast(self, call: ToolCall) -> Points:
        return Points([self.history_s.get(call.tool, DEFAULT_S)])

    def observe(self, call: ToolCall) -> None:
        known_s = self.history_s.get(call.tool, call.duration_s)
        self.history_s[call.tool] = known_s + self.weight * (call.duration_s - known_s)


@dataclass
class ToolCdf:
    """All earlier lengths of the tool, as CacheWise and Continuum use them."""

    history_s: dict[str, list[float]] = field(default_factory=dict)

    def forecast(self, call: ToolCall) -> Points:
        return Points(self.history_s.get(call.tool) or [DEFAULT_S])

    def observe(self, call: ToolCall) -> None:
        bisect.insort(self.history_s.setdefault(call.tool, []), call.duration_s)


@dataclass
class Median:
    """The estimate, else the median of the tool's last 32: this project's own first rule."""

    history_s: dict[str, deque[float]] = field(default_factory=dict)

    def forecast(self, call: ToolCall) -> Points:
        if call.given_s is not None:
            return Points([call.given_s])
        history_s = self.history_s.get(call.tool)
        return Points([median(history_s) if history_s else DEFAULT_S])

    def observe(self, call: ToolCall) -> None:
        self.history_s.setdefault(call.tool, deque(maxlen=32)).append(call.duration_s)


class Ours:
    def __init__(self) -> None:
        self.model = DurationModel(DEFAULT_S)

    @staticmethod
    def features(call: ToolCall) -> CallFeatures:
        return CallFeatures(
            tool=call.tool,
            agent_type=call.agent_type,
            application=call.application,
            given_s=call.given_s,
            argument_key=call.digest,
            argument_size=call.size,
        )

    def forecast(self, call: ToolCall) -> Binned:
        return Binned(self.model.expect(self.features(call)).cumulative)

    def observe(self, call: ToolCall) -> None:
        self.model.observe(self.features(call), call.duration_s)
