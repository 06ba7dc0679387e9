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

    def withheld_tokens(self, critical_tokens: int, critical_alive: bool) -> int:
        """What admission must leave free for critical agents.

        Args:
            critical_tokens: device tokens that critical agents hold already, pinned or running.
            critical_alive: whether any critical agent can still come; the reserve is lent to
                everybody when none can.
        """
        if not critical_alive:
            return 0
        return max(0, self.reserve_tokens - critical_tokens)
