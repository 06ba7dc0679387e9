"""How much of each prefill step a long prompt leaves to shorter ones."""

from collections.abc import Iterable
from dataclasses import dataclass

SHARE = 0.5
"""Part of a step's prefill that shorter prompts may take beside one that is prefilled in chunks. So
it is at most twice as long under way; a choice, not a measurement."""


@dataclass(frozen=True, slots=True)
class Short:
    """A request that waits: how many tokens it has to prefill, and the most it will hold."""

    prefill_tokens: int
    held_tokens: int


def shared_tokens(
    waiting: Iterable[Short],
    *,
    places: int,
    left_tokens: int,
    step_tokens: int,
    memory_tokens: int,
    page_size: int,
) -> int:
    """Tokens of a prefill step to leave to requests that wait, a whole number of pages.

    Those get them, in the order given, that have less to prefill than is left of the prompt in
    chunks (shortest remaining prefill first, which makes the mean wait least: L. Schrage, "A Proof
    of the Optimality of the Shortest Remaining Processing Time Discipline", Operations Research
    16(3), 1968), that fit whole, and for which there is memory.

    Args:
        places: how many of them can be admitted in this step.
        left_tokens: of the prompt in chunks.
        step_tokens: what a step prefills at most.
        memory_tokens: free or evictable, less what the prompt in chunks and its answer still take.
    """
    most_tokens = int(SHARE * step_tokens)
    shared = 0
    for short in waiting if places > 0 else ():
        pages_tokens = -(-short.prefill_tokens // page_size) * page_size
        if (
            short.prefill_tokens < left_tokens
            and shared + pages_tokens <= most_tokens
            and short.held_tokens <= memory_tokens
        ):
            shared += pages_tokens
            memory_tokens -= short.held_tokens
            places -= 1
            if places == 0:
                break
    return shared
