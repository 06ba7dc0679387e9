"""Shares of the KV pool among tenants, in proportion to their weights.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) on what is scarce here: each tenant
has a virtual time, the token-seconds that its requests have held in the pool, divided by its
weight, and whoever is least ahead goes first. Tenants that always have something to run so hold
the pool in proportion to their weights; what one leaves unused the others have, and it may claim no
more than a bounded part of it afterwards.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

DEFAULT_TENANT = ""
"""Of applications that name none."""

UNTAGGED: Final = None
"""The tenant of all requests without a tag, where they are one."""

Tenant = str | None

ADMITTED_S = 10.0
"""For how long a request that is placed ahead is charged, until what it really holds is known."""

CLAIM_S = 60.0
"""What a tenant left unused while it had nothing queued it may claim afterwards, up to what the
whole pool is worth for so long: an agent's tenant has nothing queued whenever its agents are in
calls. One that has nothing queued or running for longer than this claims nothing, and nothing is
held against it."""

LEVEL_S = 20.0
"""Tenants that differ by less than the whole pool for about so long, had by the one of the least
weight, are level, and the order given stays. To go by less would interrupt applications that are
about to finish."""


@dataclass(slots=True)
class _Account:
    virtual_s: float = 0.0
    running_tokens: int = 0
    queued: int = 0
    since_s: float = 0.0


class Shares:
    """Who has had how much.

    Args:
        weights: of tenants; whoever is not named weighs 1.
        pool_tokens: of the device, for ``CLAIM_S`` and ``LEVEL_S``.
    """

    def __init__(self, weights: Mapping[Tenant, float], pool_tokens: int) -> None:
        self.weights = dict(weights)
        self.claim_token_s = CLAIM_S * pool_tokens
        self.level_token_s = LEVEL_S * pool_tokens
        self._accounts: dict[Tenant, _Account] = {}

    def add(self, tenant: Tenant, now_s: float, *, tokens: int, queued: int) -> None:
        """The tenant's requests hold ``tokens`` more from now on, or fewer, and ``queued`` more of
        them wait.

        A tenant that begins to wait begins no earlier than those that do, but for its claim.
        """
        account = self._accounts.get(tenant)
        if account is None or self._is_away(account, now_s):
            account = self._accounts[tenant] = _Account(self._floor(now_s), since_s=now_s)
        virtual_s = self.virtual_s(tenant, now_s)
        if account.queued <= 0 < account.queued + queued:
            virtual_s = max(
                virtual_s, self._floor(now_s) - self.claim_token_s / self._weight(tenant)
            )
        account.virtual_s, account.since_s = virtual_s, now_s
        account.running_tokens += tokens
        account.queued += queued

    def virtual_s(self, tenant: Tenant, now_s: float) -> float:
        """The tenant's virtual time, in token-seconds per weight. Changes nothing."""
        account = self._accounts.get(tenant)
        if account is None:
            return self._floor(now_s)
        held_s = max(0.0, now_s - account.since_s)
        return account.virtual_s + account.running_tokens * held_s / self._weight(tenant)

    def interleaved(
        self, requests: Iterable[tuple[Tenant, int, int]], now_s: float
    ) -> Sequence[int]:
        """Numbers of requests, in the order to admit them.

        Args:
            requests: tenant, prompt tokens and number of each; of one tenant they keep their order,
                and so do those of tenants that are level.
        """
        queues: dict[Tenant, list[tuple[int, int, int]]] = {}
        for place, (tenant, tokens, number) in enumerate(requests):
            queues.setdefault(tenant, []).append((place, tokens, number))
        if len(queues) < 2:
            return [number for queue in queues.values() for _, _, number in queue]

        level_token_s = self.level_token_s / min(map(self._weight, queues))

        def level(virtual_s: float) -> float:
            return virtual_s // level_token_s if level_token_s else virtual_s

        # By level, then by the place in the order given: no two have the same.
        heads = []
        for tenant, queue in queues.items():
            virtual_s = self.virtual_s(tenant, now_s)
            heads.append((level(virtual_s), queue[0][0], tenant, 0, virtual_s))
        heapq.heapify(heads)
        order = []
        while heads:
            _, _, tenant, index, virtual_s = heads[0]
            _, tokens, number = queues[tenant][index]
            order.append(number)
            if index + 1 == len(queues[tenant]):
                heapq.heappop(heads)
            else:
                charged = virtual_s + tokens * ADMITTED_S / self._weight(tenant)
                place = queues[tenant][index + 1][0]
                heapq.heapreplace(heads, (level(charged), place, tenant, index + 1, charged))
        return order

    def merged(
        self,
        first: Sequence[tuple[Tenant, int, int]],
        second: Sequence[tuple[Tenant, int, int]],
        now_s: float,
    ) -> Sequence[int]:
        """Numbers of both sequences' requests, each in its own order: of the two that are next, the
        one goes first whose tenant is less ahead. The arguments are as in ``interleaved``."""
        charged: dict[Tenant, float] = {}
        ahead, behind = list(reversed(first)), list(reversed(second))
        order = []
        while ahead or behind:
            heads = [queue for queue in (ahead, behind) if queue]
            queue = min(heads, key=lambda queue: self._ahead(queue[-1], charged, now_s))
            tenant, tokens, number = queue.pop()
            order.append(number)
            charged[tenant] = charged.get(tenant, 0.0) + tokens * ADMITTED_S / self._weight(tenant)
        return order

    def _ahead(
        self, request: tuple[Tenant, int, int], charged: Mapping[Tenant, float], now_s: float
    ) -> tuple[float, int]:
        tenant, _, number = request
        return self.virtual_s(tenant, now_s) + charged.get(tenant, 0.0), number

    def forget_idle(self, now_s: float) -> None:
        """Drops tenants that would begin again where anybody new does."""
        self._accounts = {
            tenant: account
            for tenant, account in self._accounts.items()
            if not self._is_away(account, now_s)
        }

    def _floor(self, now_s: float) -> float:
        """Where whoever comes anew begins: at the least of those that wait."""
        waiting = [
            self.virtual_s(tenant, now_s)
            for tenant, account in self._accounts.items()
            if account.queued > 0
        ]
        if waiting:
            return min(waiting)
        there = [
            self.virtual_s(tenant, now_s)
            for tenant, account in self._accounts.items()
            if not self._is_away(account, now_s)
        ]
        return max(there, default=0.0)

    @staticmethod
    def _is_away(account: _Account, now_s: float) -> bool:
        idle = account.queued <= 0 and not account.running_tokens
        return idle and now_s - account.since_s > CLAIM_S

    def _weight(self, tenant: Tenant) -> float:
        return self.weights.get(tenant, 1.0)
