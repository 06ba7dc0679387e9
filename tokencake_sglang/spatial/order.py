"""The order in which queued requests are admitted."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Queued:
    """A tagged request: whether its agent is critical, and when its application was first seen.

    ``outside``: its application takes no part yet (``working_set``).
    """

    critical: bool
    application_order: int
    outside: bool = False


def admission_order(queue: Sequence[Queued | None]) -> list[int]:
    """Indices of ``queue`` in the order to admit; ``None`` stands for an untagged request.

    Untagged requests keep their places. In the places of tagged ones, applications that take part
    come first, and then by age, so that they finish instead of taking turns. Within an application
    critical agents come first, and otherwise the order given (SGLang's own policy) stays. Critical
    agents are not put first across applications: an old application would wait for a young one
    (docs/design.md, "Queue order").
    """
    places = [place for place, request in enumerate(queue) if request is not None]

    def rank(place: int) -> tuple[bool, int, bool, int]:
        request = queue[place]
        assert request is not None
        return (request.outside, request.application_order, not request.critical, place)

    order = list(range(len(queue)))
    for place, chosen in zip(places, sorted(places, key=rank), strict=True):
        order[place] = chosen
    return order
