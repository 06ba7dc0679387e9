"""How long applications still take from one of their turns on, learnt by watching them."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

PLACES_KEPT = 4096
"""Places about which something is known; those that no application came by for longest go first."""

PLACES_PER_APPLICATION = 256
"""Places of one running application that are watched."""

TURNS_TOLD_APART = 16
"""An agent's later turns count as one place."""

MEMORY = 8
"""The mean is over about so many applications, so it follows a change."""

SETTLE_S = 60.0
"""An application whose agents have all finished is over once nothing has begun for so long."""


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


@dataclass(slots=True)
class _Watched:
    """An application: when its places were come by first, and when its agents had all finished."""

    began_s: dict[Place, float] = field(default_factory=dict)
    ended_s: float | None = None


class RemainingPaths:
    """Seconds from the beginning of a turn to its application's end, by the turn's place.

    What precedes a join ends with it, whichever branch is the slowest, so this is the length of
    the longest way that is left: the remaining critical path, waits in the queue included.
    """

    def __init__(self) -> None:
        self._means: OrderedDict[Place, tuple[float, int]] = OrderedDict()  # seconds, applications
        self._watched: dict[str, _Watched] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()  # maybe over, the longest first

    def began(self, application: str, place: Place, began_s: float, now_s: float) -> None:
        """A turn that began at ``began_s`` is in its place; the first of a place counts."""
        self._settle(now_s)
        watched = self._watched.setdefault(application, _Watched())
        if watched.ended_s is not None:  # it was not over
            watched.ended_s = None
            del self._ended[application]
        if place not in watched.began_s and len(watched.began_s) < PLACES_PER_APPLICATION:
            watched.began_s[place] = began_s

    def finished(self, application: str, now_s: float) -> None:
        """All agents have finished; if no turn begins soon, the application is over."""
        self._settle(now_s)
        watched = self._watched.get(application)
        if watched is not None and watched.ended_s is None:
            watched.ended_s = now_s
            self._ended[application] = None

    def forget(self, application: str) -> None:
        """No agent of the application is known any more. It teaches something if all had
        finished; otherwise nobody saw how it went on."""
        watched = self._watched.pop(application, None)
        if watched is not None and watched.ended_s is not None:
            del self._ended[application]
            self._learn(watched.began_s, watched.ended_s)

    def first_began_s(self, application: str, place: Place) -> float | None:
        """When the first turn began that was noted of the place's agent, of an application that
        runs; earlier ones were not if the agent was alone then."""
        watched = self._watched.get(application)
        if watched is None:
            return None
        turns = (Place(place.agent_type, place.name, turn) for turn in range(place.turn + 1))
        return next((watched.began_s[turn] for turn in turns if turn in watched.began_s), None)

    def remaining_s(self, place: Place) -> float | None:
        """Expected seconds to the end from a turn's beginning; None where none was seen to end."""
        known = self._means.get(place)
        return None if known is None else known[0]

    def _settle(self, now_s: float) -> None:
        while self._ended:
            application = next(iter(self._ended))
            ended_s = self._watched[application].ended_s
            if ended_s is None or now_s < ended_s + SETTLE_S:
                return
            self.forget(application)

    def _learn(self, began_s: dict[Place, float], ended_s: float) -> None:
        for place, start_s in began_s.items():
            mean_s, seen = self._means.pop(place, (0.0, 0))
            seen = min(seen + 1, MEMORY)
            self._means[place] = (mean_s + (ended_s - start_s - mean_s) / seen, seen)
        while len(self._means) > PLACES_KEPT:
            self._means.popitem(last=False)

    def __len__(self) -> int:
        return len(self._means)
