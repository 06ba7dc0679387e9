"""The order in which queued requests are admitted."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Queued:
    """A tagged request: whether its agent is critical, and when its application was first seen."""

    critical: bool
    application_order: int


def admission_order(queue: Sequence[Queued | None]) -> list[int]:
    """Indices of ``queue`` in the order to admit; ``None`` stands for an untagged request.

    Untagged requests keep their places. In the places of tagged ones, critical agents come first,
    then applications by age, so that applications finish instead of taking turns; within one
    application the order given (SGLang's own policy) stays.
    """
    places = [place for place, request in enumerate(queue) if request is not None]

    def rank(place: int) -> tuple[bool, int, int]:
        request = queue[place]
        assert request is not None
        return (not request.critical, request.application_order, place)

    order = list(range(len(queue)))
    for place, chosen in zip(places, sorted(places, key=rank), strict=True):
        order[place] = chosen
    return order
