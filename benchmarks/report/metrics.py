"""What systems are compared by, and where a run's figures have it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Metric:
    """``path`` leads through the figures. Smaller is better unless ``more_is_better``."""

    title: str
    path: tuple[str, ...]
    more_is_better: bool = False

    def of(self, figures: dict[str, Any] | None) -> float | None:
        """The value in these figures; None where they have none."""
        value: Any = figures
        for part in self.path:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def best(self, values: dict[str, float]) -> str:
        """The name with the best value; of equal ones the first."""
        choose = max if self.more_is_better else min
        return choose(values, key=lambda name: values[name])


MEAN = Metric("end to end, mean, s", ("end_to_end_s", "mean"))
P95 = Metric("end to end, P95, s", ("end_to_end_s", "p95"))
MAKESPAN = Metric("makespan, s", ("makespan_s",))
RETURNING = Metric(
    "first token of a returning turn, mean, s", ("first_token_s", "returning", "mean")
)
RETURNING_P95 = Metric(
    "first token of a returning turn, P95, s", ("first_token_s", "returning", "p95")
)
RETURNING_P50 = Metric(
    "first token of a returning turn, P50, s", ("first_token_s", "returning", "p50")
)
UNTAGGED_P95 = Metric(
    "first token of an untagged request, P95, s", ("first_token_s", "untagged", "p95")
)
WASTED = Metric("prefill tokens wasted", ("prefill_tokens", "wasted"))
BYTES_TO_HOST = Metric("bytes copied to the host", ("transfers", "to_host_bytes"))
WORST_SLOWDOWN = Metric("worst slowdown", ("fairness", "worst_slowdown"))
FAIRNESS = Metric("fairness (Jain)", ("fairness", "jain"), more_is_better=True)

HEADLINES = (MEAN, P95, MAKESPAN, RETURNING)
"""What the document opens with, and what has tables of its own."""


def number(value: float | None) -> str:
    """Three significant digits, as one would write them."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits + (abs(value) < 1)}f}"
