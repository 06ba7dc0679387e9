"""Prequential scores: each call is predicted when it starts and learned from when it has ended."""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.durations.rivals import (
    Binned,
    Ewma,
    Forecast,
    Forecaster,
    Median,
    Ours,
    PaperBlend,
    ToolCdf,
)
from benchmarks.durations.traces import ToolCall, Trace, with_estimates

QUANTILES = (0.1, 0.5, 0.9)
SEEDS, MANY_CALLS = 5, 10_000
RANKS = 20
"""Bars of the histogram of ranks."""

OURS = "tokencake"
PAPER, EWMA, CDF = "paper's blended mean", "EWMA", "CDF per tool"
TODAY = "estimate or median of 32"
REQUIRED = (PAPER, EWMA, CDF)
EWMA_WEIGHTS = (0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Estimates:
    """What callers declare: each duration times ``bias`` and a lognormal of ``sigma``."""

    name: str
    sigma: float = 0.0
    bias: float = 1.0

    def of(self, trace: Trace, seed: int = 0) -> Trace:
        return trace if self.name == NONE else with_estimates(trace, self.sigma, self.bias, seed)

    def seeds(self, trace: Trace) -> range:
        """Where calls are few, one wild estimate of a long call would decide the mean."""
        return range(SEEDS if self.sigma and len(trace.calls) < MANY_CALLS else 1)


NONE = "none"
ESTIMATES = (
    Estimates(NONE),
    Estimates("exact"),
    Estimates("σ 0.25", 0.25),
    Estimates("σ 1", 1.0),
    Estimates("3 × too long, σ 0.25", 0.25, 3.0),
    Estimates("σ 2", 2.0),
)


def forecasts(trace: Trace, forecaster: Forecaster) -> Iterator[tuple[ToolCall, Forecast]]:
    running: list[tuple[float, int]] = []
    for number, call in enumerate(trace.calls):
        while running and running[0][0] <= call.start_s:
            forecaster.observe(trace.calls[heapq.heappop(running)[1]])
        yield call, forecaster.forecast(call)
        heapq.heappush(running, (call.end_s, number))


def score(trace: Trace, forecaster: Forecaster) -> dict[str, Any]:
    """Means over the trace's calls, in seconds; ``log_crps`` in ln(seconds)."""
    crps = log_crps = 0.0
    pinball = [0.0] * len(QUANTILES)
    ranks = [0] * RANKS
    within = 0
    for call, forecast in forecasts(trace, forecaster):
        y = call.duration_s
        crps += forecast.crps(y)
        log_crps += forecast.log_crps(y, trace.grain_s)
        low, *_, high = answers = [forecast.quantile(q) for q in QUANTILES]
        for index, (q, answer) in enumerate(zip(QUANTILES, answers, strict=True)):
            pinball[index] += q * (y - answer) if y >= answer else (1 - q) * (answer - y)
        within += low <= y <= high
        if isinstance(forecast, Binned):
            ranks[min(int(forecast.rank(y) * RANKS), RANKS - 1)] += 1
    count = len(trace.calls)
    scores: dict[str, Any] = {
        "crps_s": _rounded(crps / count),
        "log_crps": _rounded(log_crps / count),
        "pinball_s": [_rounded(sum_ / count) for sum_ in pinball],
    }
    if any(ranks):
        scores["between_10_and_90_percent"] = _rounded(within / count)
        scores["ranks"] = ranks
    return scores


def average(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over runs; ranks are added up."""
    lists = ("pinball_s", "ranks")
    mean = {
        name: _rounded(sum(run[name] for run in runs) / len(runs))
        for name in runs[0]
        if name not in lists
    }
    for name in lists:
        if name in runs[0]:
            sums = [sum(values) for values in zip(*(run[name] for run in runs), strict=True)]
            mean[name] = sums if name == "ranks" else [_rounded(s / len(runs)) for s in sums]
    return mean


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


FORECASTERS: dict[str, Callable[[], Forecaster]] = {
    OURS: Ours,
    PAPER: PaperBlend,
    CDF: ToolCdf,
    TODAY: Median,
}


def compare(trace: Trace) -> dict[str, Any]:
    """All forecasters on one trace, with each kind of estimates."""
    ewma = min(
        ({"weight": w, **score(trace, Ewma(w))} for w in EWMA_WEIGHTS), key=lambda s: s["crps_s"]
    )
    unmoved = {EWMA: ewma, CDF: score(trace, ToolCdf())}  # they do not look at estimates
    return {
        "about": trace.about,
        "calls": len(trace.calls),
        "drawn": trace.drawn,
        "estimates": {
            kind.name: {
                name: unmoved[name]
                if name in unmoved
                else average([score(kind.of(trace, seed), make()) for seed in kind.seeds(trace)])
                for name, make in FORECASTERS.items()
            }
            | {EWMA: ewma}
            for kind in ESTIMATES
        },
    }


def beaten(scores: dict[str, Any], metric: str = "crps_s") -> dict[str, bool]:
    """Per rival that is required: whether ours is better."""
    return {name: scores[OURS][metric] < scores[name][metric] for name in REQUIRED}
