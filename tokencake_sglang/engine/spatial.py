"""Applies the spatial policy: pins in partitions, the reserve in admission, the queue's order."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, AgentState
from tokencake_sglang.config import UNTAGGED_WEIGHT, TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.residents import Resident, pin_holder
from tokencake_sglang.observability.decisions import Action, DecisionLog
from tokencake_sglang.spatial.order import Queued, admission_order
from tokencake_sglang.spatial.partition import Need, Partitions
from tokencake_sglang.spatial.shares import UNTAGGED
from tokencake_sglang.temporal.next_use import seconds_to_next_use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sglang.srt.managers.schedule_batch import Req

    from tokencake_sglang.engine.applications import Applications

logger = logging.getLogger(__name__)

RETURN_HORIZON_S = 5.0
"""How far ahead of a critical agent's predicted return its part of the reserve is kept free."""

GROWTH_TOKENS = 64
"""Room for an answer, counted with each critical request."""

TARGET_PART = 0.5
"""Of ``untagged_first_token_s``: whoever has waited for so much of it goes first, for its prefill
takes time as well, and memory may have to be freed."""


@dataclass(frozen=True, slots=True)
class _Bound:
    """At most ``tokens`` may be pinned for all residents that it ``counts``; the decision log names
    it in its reasons."""

    name: str
    tokens: int
    counts: "Callable[[Resident], bool]"


class SpatialExecutor:
    """The spatial half of one rank's planner."""

    def __init__(
        self,
        config: TokencakeConfig,
        cache: TokencakeCache,
        agent_of: "Callable[[Req], Agent | None]",
        log: DecisionLog,
        pool_tokens: int,
    ) -> None:
        self.cache = cache
        self.agent_of = agent_of
        self.log = log
        if config.quotas and config.reserve_max == 0.0:
            logger.warning(
                "tokencake: quotas %s are parts of a reserve of 0: nothing is reserved for anybody; "
                "--tokencake-reserve-max 0.1 would reserve a tenth of the KV pool",
                dict(config.quotas),
            )
        weighs_untagged = config.untagged_weight not in (0.0, UNTAGGED_WEIGHT)
        rules = (config.tenants, weighs_untagged, config.untagged_first_token_s)
        if any(rules) and not (config.spatial_on and "order" not in config.without):
            logger.warning(
                "tokencake: tenants, untagged_weight and untagged_first_token_s are rules for the "
                "queue's order, which this server leaves to SGLang; drop --tokencake-spatial off and "
                "--tokencake-without order to have them"
            )
        if config.tenant_quotas and not (config.spatial_on and "working-set" not in config.without):
            logger.warning(
                "tokencake: tenant_quotas %s bound what tenants have in the working set, which "
                "this server does not keep; drop --tokencake-spatial off and "
                "--tokencake-without working-set to have them",
                dict(config.tenant_quotas),
            )
        self.partitions = Partitions(
            int(config.reserve_max * pool_tokens), config.quotas, config.tenant_quotas
        )
        self.critical_types = frozenset(config.critical_types)
        self.critical_waiting = 0
        """Critical requests in the queue at the last ``order``, which precedes each admission."""
        self._pinned: dict[tuple[str, AgentKey], Resident] = {}  # by pin holder, oldest pin first
        self._critical: dict[AgentKey, Resident] = {}
        self._tenants: dict[AgentKey, str] = {}  # on whose account critical agents' last turns ran
        self._waiting_needs: list[Need] = []
        self._now_s = 0.0
        self.idle_pin_s = config.hold_timeout_s
        self.untagged_waiting = False
        """Whether the queue held untagged requests at the last ``order``."""
        self.tenants_outside: frozenset[str] = frozenset()
        """Whose applications waited outside the working set at the last ``order``."""
        target_s = config.untagged_first_token_s
        self._patience_s = None if target_s is None else TARGET_PART * target_s
        self._untagged_since_s: dict[str, float] = {}  # by rid, of those in the queue

    def is_critical(self, agent: Agent) -> bool:
        return agent.critical or agent.agent_type in self.critical_types

    # -- pins ---------------------------------------------------------------------------------

    def turn_ended(self, resident: Resident, now_s: float, tenant: str) -> None:
        """Pins a critical agent's new path within the quotas of its partition and of its tenant;
        pins that are used later give way."""
        agent = resident.agent
        if not self.is_critical(agent) or self.partitions.reserve_tokens == 0:
            self.left(resident, now_s, "not_critical")
            return
        self._critical[agent.key] = resident
        self._tenants[agent.key] = tenant
        bounds = self._bounds(resident, tenant)
        path_tokens = self.cache.pinned_tokens([], also=resident.leaf_id)
        for bound in bounds:
            if path_tokens > bound.tokens:
                self.unpin(resident, now_s, f"outgrew_{bound.name}")
                reason = f"exceeds_{bound.name}"
                self.log.record(now_s, agent.key, Action.PIN, reason, resident.tokens)
                return
        for bound in bounds:
            others = [
                other
                for holder, other in self._pinned.items()
                if holder != resident.pin_holder and bound.counts(other)
            ]
            while others and (
                self.cache.pinned_tokens([o.pin_holder for o in others], also=resident.leaf_id)
                > bound.tokens
            ):
                latest = self._used_last(others, now_s)
                others.remove(latest)
                self.unpin(latest, now_s, bound.name)
        if self.cache.pin(resident.pin_holder, resident.leaf_id):
            self._pinned.pop(resident.pin_holder, None)
            self._pinned[resident.pin_holder] = resident
            self.log.record(now_s, agent.key, Action.PIN, "critical", resident.tokens)

    def _bounds(self, resident: Resident, tenant: str) -> "list[_Bound]":
        """On what is pinned beside the resident's path: its partition's, and its tenant's if there
        is one."""
        partition_of, tenants = self.partitions.partition_of, self._tenants
        partition = partition_of(resident.agent.agent_type)
        bounds = [
            _Bound(
                "quota",
                self.partitions.quota_tokens(partition),
                lambda other: partition_of(other.agent.agent_type) == partition,
            )
        ]
        tokens = self.partitions.tenant_quota_tokens(tenant)
        if tokens is not None:
            bounds.append(
                _Bound("tenant_quota", tokens, lambda pin: tenants[pin.agent.key] == tenant)
            )
        return bounds

    def unpin(self, resident: Resident, now_s: float, reason: str) -> None:
        if self._pinned.pop(resident.pin_holder, None) is not None:
            self.cache.unpin(resident.pin_holder)
            self.log.record(now_s, resident.agent.key, Action.UNPIN, reason)

    def left(self, resident: Resident, now_s: float, reason: str) -> None:
        """The agent is critical no more: finished, forgotten, or tagged otherwise."""
        self._critical.pop(resident.agent.key, None)
        self.unpin(resident, now_s, reason)
        self._tenants.pop(resident.agent.key, None)

    def step(self, now_s: float) -> None:
        """Unpins agents that neither stopped at a call nor came back: nobody expects them."""
        for resident in list(self._pinned.values()):
            agent = resident.agent
            idle_s = now_s - agent.last_event_s
            if agent.state is AgentState.IDLE and idle_s > self.idle_pin_s:
                self.unpin(resident, now_s, "idle")

    def drop_one_pin(self, now_s: float, reason: str) -> bool:
        """Unpins the agent whose KV is used last; False when nothing is pinned."""
        if not self._pinned:
            return False
        self.unpin(self._used_last(self._pinned.values(), now_s), now_s, reason)
        return True

    @staticmethod
    def _used_last(pinned: "Iterable[Resident]", now_s: float) -> Resident:
        """The one whose next use is farthest, as eviction has it; of several the oldest pin."""
        return max(
            pinned,
            key=lambda resident: seconds_to_next_use(
                now_s,
                has_request=bool(resident.agent.rids),
                expected=resident.expected,
                last_event_s=resident.agent.last_event_s,
            ),
        )

    def clear(self) -> None:
        """The tree was reset, and every pin with it."""
        self._pinned.clear()
        self._critical.clear()
        self._tenants.clear()

    # -- admission ----------------------------------------------------------------------------

    def withheld_tokens(self, running: "Sequence[Req]", now_s: float) -> int:
        """What a request that is not critical must leave free.

        As much of the reserve as critical agents need that wait, or will be back within
        ``RETURN_HORIZON_S``, within their types' and tenants' quotas: what nobody needs soon is lent
        to everybody.
        """
        if self.partitions.reserve_tokens == 0:
            return 0
        soon_s = now_s + RETURN_HORIZON_S
        needs = list(self._waiting_needs)
        for key, resident in self._critical.items():
            if resident.return_s is not None and resident.return_s <= soon_s:
                tokens = resident.tokens + GROWTH_TOKENS
                needs.append(Need(resident.agent.agent_type, self._tenants[key], tokens))
        if not needs:
            return 0
        partition_of = self.partitions.partition_of
        return self.partitions.withheld_tokens(
            needs,
            held_by_partition=self._held(running, lambda agent: partition_of(agent.agent_type)),
            held_by_tenant=self._held(running, lambda agent: self._tenants.get(agent.key)),
        )

    def _held(
        self, running: "Sequence[Req]", part_of: "Callable[[Agent], str | None]"
    ) -> dict[str, int]:
        """Device tokens that critical agents hold, pinned or running, by ``part_of``; what pins of
        one part share counts once."""
        holders: dict[str, list[tuple[str, AgentKey]]] = {}
        for holder, resident in self._pinned.items():
            part = part_of(resident.agent)
            if part is not None:
                holders.setdefault(part, []).append(holder)
        held = {part: self.cache.pinned_tokens(pins) for part, pins in holders.items()}
        for req in running:
            agent = self.agent_of(req)
            if agent is None or not self.is_critical(agent):
                continue
            part = part_of(agent)
            if part is not None:
                pinned = self._pinned.get(pin_holder(agent.key))
                tokens = len(req.origin_input_ids) + len(req.output_ids)
                beside = max(0, tokens - (pinned.tokens if pinned is not None else 0))
                held[part] = held.get(part, 0) + beside
        return held

    def order(self, waiting_queue: "list[Req]", applications: "Applications", now_s: float) -> None:
        """Sorts the queue in place, and notes what its critical requests need."""
        self._now_s = now_s
        queue: list[Queued | None] = []
        self._waiting_needs = []
        for req in waiting_queue:
            agent = self.agent_of(req)
            if agent is not None and self.is_critical(agent):
                tokens = len(req.origin_input_ids) + GROWTH_TOKENS
                tenant = applications.tenant_of(agent)
                self._waiting_needs.append(Need(agent.agent_type, tenant, tokens))
            queue.append(None if agent is None else self._queued(agent, req, applications))
        self.untagged_waiting = None in queue
        outside = (request.tenant for request in queue if request is not None and request.outside)
        self.tenants_outside = frozenset(outside)
        self.critical_waiting = sum(request is not None and request.critical for request in queue)
        urgent = self._urgent(waiting_queue, queue)  # always: they wait from now on
        if any(request is not None for request in queue):
            untagged_tokens = None
            if UNTAGGED in applications.shares.weights:
                untagged_tokens = {
                    place: len(waiting_queue[place].origin_input_ids)
                    for place, request in enumerate(queue)
                    if request is None
                }
            order = admission_order(
                queue,
                urgent=urgent,
                shares=applications.shares,
                untagged_tokens=untagged_tokens,
                now_s=self._now_s,
            )
            waiting_queue[:] = [waiting_queue[place] for place in order]

    def _queued(self, agent: Agent, req: "Req", applications: "Applications") -> Queued:
        began_s, remaining_s = applications.turns.path_of(agent)
        outside = not applications.takes_part(agent)
        tokens = len(req.origin_input_ids)
        return Queued(
            critical=self.is_critical(agent),
            application_order=agent.application_order,
            began_s=began_s,
            remaining_s=remaining_s,
            outside=outside,
            enters_s=applications.enters_s(agent, tokens, self._now_s) if outside else 0.0,
            tenant=applications.tenant_of(agent),
            tokens=tokens,
        )

    def _urgent(self, waiting_queue: "list[Req]", queue: "list[Queued | None]") -> set[int]:
        """Places of untagged requests that have waited for too long."""
        if self._patience_s is None:
            return set()
        untagged = {
            req.rid: place
            for place, (req, tagged) in enumerate(zip(waiting_queue, queue, strict=True))
            if tagged is None
        }
        since = self._untagged_since_s
        self._untagged_since_s = {rid: since.get(rid, self._now_s) for rid in untagged}
        return {
            place
            for rid, place in untagged.items()
            if self._now_s - self._untagged_since_s[rid] >= self._patience_s
        }

    # -- for status ---------------------------------------------------------------------------

    def snapshot(self) -> dict[str, int]:
        return {
            "reserve_tokens": self.partitions.reserve_tokens,
            "critical_agents": len(self._critical),
            "pinned_agents": len(self._pinned),
            "pinned_tokens": self.cache.pinned_tokens(list(self._pinned)),
        }
