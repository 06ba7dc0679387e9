"""How far apart scheduler steps are: nothing that the planner starts begins or ends in between."""

from dataclasses import dataclass

LONGEST_STEP_S = 5.0
"""A longer silence is not a step: no tick was sent because no call was open."""

DECAY = 0.9


@dataclass(slots=True)
class StepGap:
    """The longest of the last steps; by the common stamps, so equal on all ranks."""

    longest_s: float = 0.0
    last_s: float = 0.0
    """When the last step was."""

    def tell(self, now_s: float) -> None:
        """Once a step. Stamps are the only clock: steps are measured by the ticks between them."""
        gap_s, self.last_s = now_s - self.last_s, now_s
        if 0.0 < gap_s < LONGEST_STEP_S:
            self.longest_s = max(gap_s, DECAY * self.longest_s)


def piece_tokens(least: int, link_tokens_per_s: float, step_s: float) -> int:
    """How much to upload at once. Nothing starts inside a scheduler step, so after a piece of less
    than the link carries in one the link would idle until the next.

    Args:
        step_s: how long a scheduler step takes.
    """
    return max(least, int(link_tokens_per_s * step_s))
