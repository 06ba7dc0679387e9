"""How long applications still take from one of their steps on, learnt by watching them."""

from collections import OrderedDict
from typing import NamedTuple

STEPS_REMEMBERED = 4096
"""Steps about which something is known; the longest unused are forgotten."""

STEPS_PER_APPLICATION = 256
"""Steps of one running application that are watched."""

TURNS_TOLD_APART = 16
"""An agent's later turns count as one step."""

MEMORY = 8
"""The mean is over about so many applications, so it follows a change."""


class Place(NamedTuple):
    """Where in an application of its kind an agent's turn stands.

    ``name`` is the agent's place in the graph (its tag's ``node``), or its own name where the tag
    gives none. Applications that name their agents alike are taken to be of one kind.
    """

    agent_type: str
    name: str
    turn: int = 0

    @classmethod
    def of(cls, agent_type: str, name: str, turns: int) -> "Place":
        return cls(agent_type, name, min(turns, TURNS_TOLD_APART))


class RemainingPaths:
    """Seconds from the beginning of a step to its application's end, by the step's place.

    What precedes a join ends with it, whichever branch is the slowest, so this is the length of
    the longest way that is left: the remaining critical path, waits in the queue included.
    """

    def __init__(self) -> None:
        self._means: OrderedDict[Place, tuple[float, int]] = OrderedDict()  # seconds, applications
        self._began_s: dict[str, dict[Place, float]] = {}

    def began(self, application: str, place: Place, now_s: float) -> None:
        """A turn begins; of a place seen before in this application the first beginning counts."""
        steps = self._began_s.setdefault(application, {})
        if place not in steps and len(steps) < STEPS_PER_APPLICATION:
            steps[place] = now_s

    def finished(self, application: str, now_s: float) -> None:
        """The application is over; how long it took from each of its steps on is learnt."""
        for place, began_s in self._began_s.pop(application, {}).items():
            mean_s, seen = self._means.pop(place, (0.0, 0))
            seen = min(seen + 1, MEMORY)
            self._means[place] = (mean_s + (now_s - began_s - mean_s) / seen, seen)
        while len(self._means) > STEPS_REMEMBERED:
            self._means.popitem(last=False)

    def forget(self, application: str) -> None:
        """The application ended in a way that teaches nothing."""
        self._began_s.pop(application, None)

    def remaining_s(self, place: Place) -> float | None:
        """Expected seconds to the end from a turn's beginning; None where none was seen to end."""
        known = self._means.get(place)
        return None if known is None else known[0]

    def __len__(self) -> int:
        return len(self._means)
