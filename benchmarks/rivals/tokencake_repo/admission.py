"""Who is admitted next, and from whose capacity (``scheduling.py``). Pure; tokens throughout."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

BORROWING_LEAD = 500
PREFIX_BAND = 500

Charge = tuple[str | None, int]
"""Whose reservation (None: the shared capacity), and how many tokens of it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued request as admission sees it.

    ``full_tokens`` is its input and all it may generate. ``held_tokens`` of its prefix are held by
    running requests, so they take nothing. ``own_score`` is before its join group's is inherited.
    """

    rid: str
    agent_type: str
    score: int
    own_score: int
    queued_s: float
    full_tokens: int
    held_tokens: int = 0

    @property
    def demand(self) -> int:
        return max(0, self.full_tokens - self.held_tokens)

    @property
    def affinity(self) -> float:
        """``_active_prefix_affinity``: preferred when most of it is held anyway."""
        held = self.held_tokens
        return 0.0 if held < self.demand or not held else held / (held + self.demand)


def ordered(waiting: Sequence[Waiting], *, scarce: bool) -> list[Waiting]:
    """``order_candidates``: by score; when capacity is scarce, held prefixes first in a band."""
    by_score = sorted(waiting, key=lambda w: (-w.score, -w.own_score, w.queued_s, w.rid))
    if not scarce:
        return by_score
    result: list[Waiting] = []
    start = 0
    while start < len(by_score):
        floor = by_score[start].score - PREFIX_BAND
        stop = start + 1
        while stop < len(by_score) and by_score[stop].score >= floor:
            stop += 1
        result += sorted(by_score[start:stop], key=lambda w: w.affinity, reverse=True)
        start = stop
    return result


@dataclass(slots=True)
class Capacity:
    """What there is to give: ``uncommitted`` in all, and whose it is.

    ``waiting_best`` is the highest score that waits, of each critical type that waits.
    """

    uncommitted: int
    shared: int
    reserved: dict[str, int]
    type_scores: Mapping[str, float]
    waiting_best: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        uncommitted: int,
        shared: int,
        reserved: Mapping[str, int],
        used: Mapping[str | None, int],
        type_scores: Mapping[str, float],
        waiting_best: Mapping[str, int],
    ) -> "Capacity":
        """``_update_available``: what the partition leaves after ``used``; where that is more
        than there is, the shared part shrinks first, then the least important reservations."""
        shared = max(0, shared - used.get(None, 0))
        left = {kind: max(0, tokens - used.get(kind, 0)) for kind, tokens in reserved.items()}
        excess = max(0, shared + sum(left.values()) - max(0, uncommitted))
        cut = min(excess, shared)
        shared, excess = shared - cut, excess - cut
        for kind in sorted(left, key=lambda kind: type_scores[kind]):
            cut = min(excess, left[kind])
            left[kind] -= cut
            excess -= cut
        return cls(uncommitted, shared, left, type_scores, waiting_best)

    def charges(self, request: Waiting, *, borrow: bool = False) -> list[Charge] | None:
        """``_consumption``: shared capacity, then its type's reservation, then others'.

        A reservation whose type does not wait may be borrowed; one whose type does, by a request
        that leads that type's best by 500 points, or by anybody in the second round (``borrow``).
        """
        found: list[Charge] = []
        missing = request.demand
        for owner, tokens in self._sources(request, borrow):
            taken = min(missing, tokens)
            if taken:
                found.append((owner, taken))
            missing -= taken
            if not missing:
                return found
        return found if not missing else None

    def _sources(self, request: Waiting, borrow: bool) -> Iterator[Charge]:
        kind = request.agent_type
        yield None, self.shared
        if kind in self.reserved:
            yield kind, self.reserved[kind]
        donors = sorted(
            (other for other in self.reserved if other != kind),
            key=lambda other: (self.reserved[other], self.type_scores[other]),
            reverse=True,
        )
        for owner in donors:
            best = self.waiting_best.get(owner)
            if borrow or best is None or request.score - best >= BORROWING_LEAD:
                yield owner, self.reserved[owner]

    def take(self, request: Waiting, charges: Sequence[Charge]) -> None:
        self.uncommitted -= request.demand
        for owner, tokens in charges:
            if owner is None:
                self.shared -= tokens
            else:
                self.reserved[owner] -= tokens


def admitted(order: Sequence[Waiting], capacity: Capacity) -> dict[str, list[Charge]]:
    """Those who fit, in order of admission, and what they are charged to. Changes ``capacity``.

    A request must fit as a whole, with all it may generate. Who was kept out by a reservation
    alone is asked again at the end: an idle reserve is lent.
    """
    found: dict[str, list[Charge]] = {}
    kept_out: list[Waiting] = []
    for request in order:
        if request.demand > capacity.uncommitted:
            continue
        charges = capacity.charges(request)
        if charges is None:
            kept_out.append(request)
        else:
            capacity.take(request, charges)
            found[request.rid] = charges
    for request in kept_out:
        if request.demand <= capacity.uncommitted:
            charges = capacity.charges(request, borrow=True)
            if charges is not None:
                capacity.take(request, charges)
                found[request.rid] = charges
    return found
