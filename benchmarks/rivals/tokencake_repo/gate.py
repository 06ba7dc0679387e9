"""Whether a stalled agent's context is worth a copy on the host (``offload_policy.py``). Pure."""

from dataclasses import dataclass
from enum import StrEnum

from benchmarks.rivals.tokencake_repo.graph import Metadata

LOW_USAGE = 0.60
HIGH_USAGE = 0.85
LEAST_SCORE = 1.0
BACKOFF_STEPS = 8
WINDOW_BLOCKS = 128
BLOCK_TOKENS = 16
RECENT_STEPS = 4
SUBMISSION_S_PER_BLOCK = 3e-6


@dataclass(frozen=True, slots=True)
class Pressure:
    """What waits, and for how much. Everything but ``usage`` and ``waiting`` is in blocks.

    ``fit_demand`` is what those waiting requests would take that could be admitted right now.
    """

    usage: float
    free: int
    waiting: int
    waiting_demand: int
    critical_demand: int
    shared_available: int
    fit_demand: int


class Verdict(StrEnum):
    SELECTED = "selected"
    NOT_ELIGIBLE = "not_eligible"
    EMPTY = "empty"
    NO_WAITING_DEMAND = "no_waiting_demand"
    CPU_CAPACITY = "cpu_capacity"
    UNPROFITABLE = "unprofitable"
    LOW_PRESSURE = "low_pressure"


@dataclass(frozen=True, slots=True)
class Benefit:
    verdict: Verdict
    score: float


def evaluate(
    declared: Metadata,
    pressure: Pressure,
    *,
    blocks: int,
    host_has_room: bool,
    remaining_s: float,
    transfer_s: float,
    agent_score: float = 0.0,
    churn: float = 0.0,
) -> Benefit:
    """``evaluate_benefit``.

    Args:
        blocks: of the context.
        remaining_s: of the predicted tool call.
        transfer_s: of the copy and of its way back.
        agent_score: of the agent's type; 0 without the scheduling half.
        churn: ``churn_penalty``.
    """
    importance = min(10.0, max(declared.importance, agent_score / 2))
    near_end = declared.near_completion or (
        declared.max_depth > 0 and declared.remaining_depth <= 1
    )
    margin_s = remaining_s - transfer_s
    upload_is_safe = remaining_s >= 2 * transfer_s
    score = (
        min(6.0, margin_s / max(0.25, transfer_s))
        + max(0.0, (pressure.usage - LOW_USAGE) * 6)
        + min(2.0, pressure.waiting_demand / (blocks + 1))
        + min(2.0, pressure.fit_demand / max(1, blocks))
        + (1.0 if upload_is_safe else -1.0)
        + (1.0 if host_has_room else -4.0)
        - 0.35 * importance
        - 2.0 * near_end
        - churn
    )
    emergency = (
        pressure.usage >= HIGH_USAGE
        and margin_s >= max(4 * transfer_s, 5.0)
        and pressure.waiting > 0
    )
    nobody_needs_room = (
        pressure.waiting_demand <= pressure.free
        and pressure.critical_demand <= pressure.shared_available
    )
    risky = near_end or margin_s < max(0.5, 8 * transfer_s) or not upload_is_safe
    verdict = Verdict.SELECTED
    if not declared.offload_eligible:
        verdict = Verdict.NOT_ELIGIBLE
    elif blocks <= 0:
        verdict = Verdict.EMPTY
    elif pressure.fit_demand <= 0:
        verdict = Verdict.NO_WAITING_DEMAND
    elif not host_has_room:
        verdict = Verdict.CPU_CAPACITY
    elif margin_s <= 0 or (margin_s < max(0.05, 2 * transfer_s) and not emergency):
        verdict = Verdict.UNPROFITABLE
    elif pressure.usage < LOW_USAGE and (
        nobody_needs_room or pressure.fit_demand < blocks or pressure.waiting == 0
    ):
        verdict = Verdict.LOW_PRESSURE
    elif not emergency and ((importance >= 8.0 and risky) or score < LEAST_SCORE):
        verdict = Verdict.UNPROFITABLE
    return Benefit(verdict, score)


def churn_penalty(steps_since_own: int | None, recent_copies: int) -> float:
    """1.5 for a context copied within 4 steps, and up to 4 when more than 64 were copied then."""
    own = 1.5 if steps_since_own is not None and steps_since_own <= RECENT_STEPS else 0.0
    return own + min(4.0, max(0, recent_copies - 64) / 8)


def is_worth_its_way(remaining_s: float, transfer_s: float) -> bool:
    """``_preservation_limit``: what bounds the length of the prefix that is copied."""
    return remaining_s - transfer_s >= max(0.05, 2 * transfer_s)


def release_s(predicted_end_s: float, upload_s: float) -> float:
    """When the copy's pin on the host ends (``set_h2d_estimate``), before the context is used."""
    return predicted_end_s - max(0.1, 1.25 * upload_s)
