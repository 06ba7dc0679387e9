"""How far apart scheduler steps are: nothing that the planner starts begins or ends in between."""

from dataclasses import dataclass

LONGEST_STEP_S = 5.0
"""A longer silence is not a step: no tick was sent because no call was open."""

DECAY = 0.9
"""How fast the longest and the shortest of late are forgotten, by each time between two stamps."""


@dataclass(slots=True)
class StepGap:
    """The longest of the last steps; by the common stamps, so equal on all ranks."""

    longest_s: float = 0.0
    last_s: float = 0.0
    """When the last step was."""
    forward_s: float = 0.0
    """Seconds that a step with a forward took at least, of late; 0 while nothing is known."""
    _forwards: int = 0  # since the last stamp
    _idle: bool = True  # whether a step since then had none: the time was not theirs alone

    def tell(self, now_s: float, *, forward: bool) -> bool:
        """Once a step. Stamps are the only clock: steps are measured by the ticks between them.

        Args:
            forward: whether one is under way.

        Returns whether time has passed.
        """
        gap_s = now_s - self.last_s
        if gap_s > 0.0:
            self._note_gap(gap_s)
            self.last_s = now_s
        if forward:
            self._forwards += 1
        else:
            self._idle = True
        return gap_s > 0.0

    def _note_gap(self, gap_s: float) -> None:
        if gap_s < LONGEST_STEP_S:
            self.longest_s = max(gap_s, DECAY * self.longest_s)
            if self._forwards and not self._idle:
                self._note_forward(gap_s / self._forwards)
        self._forwards, self._idle = 0, False

    def _note_forward(self, took_s: float) -> None:
        # The mean would count the prefills of others for a returning agent's own.
        if self.forward_s == 0.0:
            self.forward_s = took_s
        else:
            self.forward_s = min(took_s, self.forward_s / DECAY)


def piece_tokens(least: int, link_tokens_per_s: float, step_s: float) -> int:
    """How much to upload at once. Nothing starts inside a scheduler step, so after a piece of less
    than the link carries in one the link would idle until the next.

    Args:
        step_s: how long a scheduler step takes.
    """
    return max(least, int(link_tokens_per_s * step_s))
