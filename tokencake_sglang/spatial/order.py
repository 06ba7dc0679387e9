"""The order in which queued requests are admitted."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tokencake_sglang.spatial.shares import DEFAULT_TENANT, UNTAGGED, Shares

PROMPT_TOKEN_S = 0.02
"""What a newcomer that declares nothing is expected to take, for each token of its first prompt:
sixteen coding sessions of first prompts of 19,000 tokens (median) are done in about that."""

OUTPUT_TOKEN_S = 0.04
"""What one that declares its output is expected to take, for each token of it: of the same sessions
the median generates 8,000 to 9,000."""

ENTRY_WEIGHT = 0.1
"""What a newcomer is expected to take, as a part of it in seconds of waiting: a choice, not a
measurement. The larger it is, the longer long applications may have to wait for short ones."""

MOST_ENTRY_S = 600.0
"""No newcomer is passed by any that comes more than so long after it, whatever it is expected to
take: what it declares may be wrong."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A tagged request: whether its agent is critical, and when its application was first seen.

    ``began_s``: when its turn did. ``remaining_s``: what its application is expected to take from
    there on, None if nothing is known. ``outside``: its application takes no part yet
    (``working_set``); ``enters_s`` says when it is its turn (``turn_to_enter_s``). ``tokens``: of its
    prompt.
    """

    critical: bool
    application_order: int
    began_s: float = 0.0
    remaining_s: float | None = None
    outside: bool = False
    enters_s: float = 0.0
    tenant: str = DEFAULT_TENANT
    tokens: int = 0


def turn_to_enter_s(came_s: float, prompt_tokens: int, output_tokens: int | None = None) -> float:
    """When it is a newcomer's turn, beside others': when it came, and later the more it brings.

    It is passed by those that come less than ``ENTRY_WEIGHT`` times what it is expected to take
    after it, ``MOST_ENTRY_S`` at most, and by nobody else.

    Args:
        prompt_tokens: of its first prompt, by which it is judged if nothing else is known.
        output_tokens: of all its requests together, if it said so.
    """
    if output_tokens is None:
        expected_s = PROMPT_TOKEN_S * prompt_tokens
    else:
        expected_s = OUTPUT_TOKEN_S * output_tokens
    return came_s + min(ENTRY_WEIGHT * expected_s, MOST_ENTRY_S)


def admission_order(
    queue: Sequence[Queued | None],
    *,
    urgent: Collection[int] = (),
    shares: Shares | None = None,
    untagged_tokens: Mapping[int, int] | None = None,
    now_s: float = 0.0,
) -> list[int]:
    """Indices of ``queue`` in the order to admit; ``None`` stands for an untagged request.

    Of tagged ones, applications that take part come first, by age, so that they finish instead of
    taking turns; then newcomers, by ``enters_s``. Within an application critical agents come first,
    then, if anything is known of its remaining paths, the smallest ``began_s - remaining_s``
    (nothing known counts as nothing left), and otherwise the order given (SGLang's own policy)
    stays. Critical agents are not put first across applications: an old application would wait for
    a young one (docs/design.md, "Queue order"). Untagged requests keep their order, as a tenant
    (``untagged_tokens``), or else their places; ``urgent`` ones go before all others.

    Args:
        shares: decides between tenants; each one's applications stay in order of age.
        untagged_tokens: the prompts of untagged requests by their places, if ``shares`` decides
            between these and the tagged ones as well; their own order stays.
    """
    goes_first = {place for place in urgent if queue[place] is None}
    order = [place for place in range(len(queue)) if place not in goes_first]
    positions = [i for i, place in enumerate(order) if queue[place] is not None]
    tagged = {place: request for place, request in enumerate(queue) if request is not None}

    with_paths = {
        request.application_order for request in tagged.values() if request.remaining_s is not None
    }

    def rank(place: int) -> tuple[float, int, bool, float, int]:
        request = tagged[place]
        enters_s = request.enters_s if request.outside else 0.0
        start_by_s = 0.0
        if request.application_order in with_paths:
            start_by_s = request.began_s - (request.remaining_s or 0.0)
        application = (enters_s, request.application_order)
        return (*application, not request.critical, start_by_s, place)

    chosen: list[int] = []
    for outside in (False, True):
        group = sorted((p for p, request in tagged.items() if request.outside is outside), key=rank)
        if shares is not None:
            named = ((tagged[place].tenant, tagged[place].tokens, place) for place in group)
            group = list(shares.interleaved(named, now_s))
        chosen += group
    if shares is not None and untagged_tokens is not None:
        order = list(
            shares.merged(
                [(tagged[place].tenant, tagged[place].tokens, place) for place in chosen],
                [
                    (UNTAGGED, untagged_tokens[place], place)
                    for place in order
                    if place not in tagged
                ],
                now_s,
            )
        )
    else:
        for i, place in zip(positions, chosen, strict=True):
            order[i] = place
    return sorted(goes_first) + order
