"""Reserved partitions: how much of the KV pool critical agent types may hold."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Partitions:
    """A reserve of ``reserve_tokens``, divided among critical agent types.

    Types named in ``quotas`` (parts of the reserve, together at most 1) have their own partition;
    all others share what is left.
    """

    reserve_tokens: int
    quotas: Mapping[str, float]

    def partition_of(self, agent_type: str) -> str:
        """The partition's name: the type itself, or ``""`` for the one that is shared."""
        return agent_type if agent_type in self.quotas else ""

    def quota_tokens(self, partition: str) -> int:
        """Most tokens that may be pinned in ``partition``."""
        part = self.quotas[partition] if partition else 1.0 - sum(self.quotas.values())
        return int(self.reserve_tokens * max(0.0, part))

    def withheld_tokens(self, held_tokens: int, needed_tokens: int) -> int:
        """What admission must leave free for critical agents.

        Args:
            held_tokens: device tokens that critical agents hold already, pinned or running.
            needed_tokens: what critical agents need that wait or will soon be back; the rest of
                the reserve is lent.
        """
        return max(0, min(self.reserve_tokens - held_tokens, needed_tokens))
