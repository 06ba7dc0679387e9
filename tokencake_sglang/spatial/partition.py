"""Reserved partitions: how much of the KV pool critical agent types may hold."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Need:
    """Device tokens that a critical agent needs that waits or will soon be back."""

    agent_type: str
    tenant: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Partitions:
    """A reserve of ``reserve_tokens``, divided among critical agent types.

    Types named in ``quotas`` (parts of the reserve, together at most 1) have their own partition;
    all others share what is left. ``tenant_quotas`` bound what tenants have of it, of whatever type;
    those need not sum up to 1, and tenants not named are not bounded.
    """

    reserve_tokens: int
    quotas: Mapping[str, float]
    tenant_quotas: Mapping[str, float] = field(default_factory=dict)

    def partition_of(self, agent_type: str) -> str:
        """The partition's name: the type itself, or ``""`` for the one that is shared."""
        return agent_type if agent_type in self.quotas else ""

    def quota_tokens(self, partition: str) -> int:
        """Most tokens that may be pinned in ``partition``."""
        part = self.quotas[partition] if partition else 1.0 - sum(self.quotas.values())
        return int(self.reserve_tokens * max(0.0, part))

    def tenant_quota_tokens(self, tenant: str) -> int | None:
        """Most tokens that may be pinned for ``tenant``; None if it is not bounded."""
        part = self.tenant_quotas.get(tenant)
        return None if part is None else int(part * self.reserve_tokens)

    def withheld_tokens(
        self,
        needs: Iterable[Need],
        *,
        held_by_partition: Mapping[str, int],
        held_by_tenant: Mapping[str, int],
    ) -> int:
        """What admission must leave free for critical agents; the rest of the reserve is lent.

        Each need counts as far as its partition and its tenant have room left of their quotas. Who
        comes first in ``needs`` is served first.

        Args:
            held_by_partition: device tokens that critical agents hold already, pinned or running.
            held_by_tenant: the same tokens by tenant.
        """
        left: dict[tuple[str, str], int] = {}
        withheld = 0
        for need in needs:
            partition = self.partition_of(need.agent_type)
            quotas = {("type", partition): self.quota_tokens(partition)}
            tenant_tokens = self.tenant_quota_tokens(need.tenant)
            if tenant_tokens is not None:
                quotas["tenant", need.tenant] = tenant_tokens
            held = {"type": held_by_partition, "tenant": held_by_tenant}
            for (kind, name), tokens in quotas.items():
                left.setdefault((kind, name), tokens - held[kind].get(name, 0))
            counted = max(0, min(need.tokens, *(left[bound] for bound in quotas)))
            for bound in quotas:
                left[bound] -= counted
            withheld += counted
        return withheld
