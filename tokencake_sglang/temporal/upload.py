"""When an upload must start: by when it should be complete, and how long it takes."""

from dataclasses import dataclass

CRITICAL_LATE_COST = 3.0
"""A second that a critical agent waits for its KV, in seconds of holding it. Of others: 1."""


def upload_quantile(hold_cost: float, late_cost: float) -> float:
    """The quantile of the time of return at which an upload should be complete.

    The newsvendor's rule (Arrow, Harris and Marschak 1951, "Optimal Inventory Policy"). Complete at
    ``u`` for a return at ``T``, an upload costs ``hold_cost * max(T - u, 0)`` and
    ``late_cost * max(u - T, 0)``. The mean is least where a second later spares as much holding as
    it adds lateness, ``hold_cost * P(T > u) = late_cost * P(T <= u)``: at
    ``P(T <= u) = hold_cost / (hold_cost + late_cost)``. Equal costs give the median.

    Args:
        hold_cost: of a second for which the KV is back before its agent; above 0.
        late_cost: of a second for which the agent waits, in the same unit; above 0.
    """
    return hold_cost / (hold_cost + late_cost)


CRITICAL_QUANTILE = upload_quantile(1.0, CRITICAL_LATE_COST)
"""For a critical agent. Others have the median, at which they are expected anyway."""


PROMISED_HEADROOM = 0.05
"""Part of the pool that an upload leaves free or evictable if the caller said when its call ends.
It takes memory for about as long as it lasts itself."""

PREDICTED_HEADROOM = 0.4
"""Likewise if the return is a median: of the calls that have not ended by then half will last as
long again, and what is held meanwhile makes others wait."""


def headroom_tokens(pool_tokens: int, *, promised: bool) -> int:
    """What an upload leaves free or evictable, of a pool of ``pool_tokens``."""
    return int((PROMISED_HEADROOM if promised else PREDICTED_HEADROOM) * pool_tokens)


@dataclass(frozen=True, slots=True)
class UploadTiming:
    """Uploads end ``lead_s`` before they should be complete, at the link's speed one way."""

    link_tokens_per_s: float
    lead_s: float

    def start_s(self, upload_by_s: float, host_tokens: int) -> float:
        """When the upload of ``host_tokens`` must start that should be complete by then."""
        return upload_by_s - host_tokens / self.link_tokens_per_s - self.lead_s

    def hidden_tokens(self, forward_s: float) -> int:
        """How much SGLang's layer-wise load hides at admission: nobody waits for it longer.

        Layer l of L computes once it and its load are done, both at an even pace. A forward of F
        seconds so ends with a load of C after ``max(F + C / L, C + F / L)``: up to C = F the wait is
        for the first layer alone.
        """
        return int(forward_s * self.link_tokens_per_s)
