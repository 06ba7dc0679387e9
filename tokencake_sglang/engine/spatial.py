"""Applies the spatial policy: pins in partitions, the reserve in admission, the queue's order."""

from typing import TYPE_CHECKING

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, AgentState
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.residents import Resident, pin_holder
from tokencake_sglang.observability.decisions import Action, DecisionLog
from tokencake_sglang.spatial.order import Queued, admission_order
from tokencake_sglang.spatial.partition import Partitions
from tokencake_sglang.spatial.working_set import WorkingSet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sglang.srt.managers.schedule_batch import Req


RETURN_HORIZON_S = 5.0
"""How far ahead of a critical agent's predicted return its part of the reserve is kept free."""

GROWTH_TOKENS = 64
"""Room for an answer, counted with each critical request."""

DEMAND_SHARE = 1.0
"""Part of the pool that the working set's average demands may fill."""

HOST_SHARE = 0.95
"""Part of the host tier that the working set may fill."""


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
        self.partitions = Partitions(int(config.reserve_max * pool_tokens), config.quotas)
        self.critical_types = frozenset(config.critical_types)
        self.critical_waiting = 0
        """Critical requests in the queue at the last ``order``, which precedes each admission."""
        self._pinned: dict[tuple[str, AgentKey], Resident] = {}  # by pin holder, oldest pin first
        self._critical: dict[AgentKey, Resident] = {}
        self._waiting_need_tokens = 0
        self._now_s = 0.0
        self.idle_pin_s = config.hold_timeout_s
        host_tokens = cache.cache_controller.mem_pool_host.size
        self.working_set = WorkingSet(
            int(DEMAND_SHARE * pool_tokens), max(pool_tokens, int(HOST_SHARE * host_tokens))
        )
        self.untagged_waiting = False
        """Whether the queue held untagged requests at the last ``order``."""
        self._agents: dict[str, dict[AgentKey, Agent]] = {}  # by application, as long as known
        self._running: dict[str, dict[str, int]] = {}  # application -> rid -> tokens
        self._residents: dict[str, dict[AgentKey, Resident]] = {}
        self._newcomer_tokens: int | None = None  # the first that the last attempt left outside

    def is_critical(self, agent: Agent) -> bool:
        return agent.critical or agent.agent_type in self.critical_types

    # -- pins ---------------------------------------------------------------------------------

    def turn_ended(self, resident: Resident, now_s: float) -> None:
        """Pins a critical agent's new path within its partition's quota, older pins giving way."""
        agent = resident.agent
        if not self.is_critical(agent) or self.partitions.reserve_tokens == 0:
            self.left(resident, now_s, "not_critical")
            return
        self._critical[agent.key] = resident
        partition = self.partitions.partition_of(agent.agent_type)
        quota = self.partitions.quota_tokens(partition)
        if self.cache.pinned_tokens([], also=resident.leaf_id) > quota:
            self.unpin(resident, now_s, "outgrew_quota")
            self.log.record(now_s, agent.key, Action.PIN, "exceeds_quota", resident.tokens)
            return
        others = [
            other
            for holder, other in self._pinned.items()
            if holder != resident.pin_holder
            and self.partitions.partition_of(other.agent.agent_type) == partition
        ]
        while others and (
            self.cache.pinned_tokens([o.pin_holder for o in others], also=resident.leaf_id) > quota
        ):
            self.unpin(others.pop(0), now_s, "quota")
        if self.cache.pin(resident.pin_holder, resident.leaf_id):
            self._pinned.pop(resident.pin_holder, None)
            self._pinned[resident.pin_holder] = resident
            self.log.record(now_s, agent.key, Action.PIN, "critical", resident.tokens)

    def unpin(self, resident: Resident, now_s: float, reason: str) -> None:
        if self._pinned.pop(resident.pin_holder, None) is not None:
            self.cache.unpin(resident.pin_holder)
            self.log.record(now_s, resident.agent.key, Action.UNPIN, reason)

    def left(self, resident: Resident, now_s: float, reason: str) -> None:
        """The agent is critical no more: finished, forgotten, or tagged otherwise."""
        self._critical.pop(resident.agent.key, None)
        self.unpin(resident, now_s, reason)

    def step(self, now_s: float) -> None:
        """Unpins agents that neither stopped at a call nor came back: nobody expects them."""
        self._now_s = now_s
        for resident in list(self._pinned.values()):
            agent = resident.agent
            idle_s = now_s - agent.last_event_s
            if agent.state is AgentState.IDLE and idle_s > self.idle_pin_s:
                self.unpin(resident, now_s, "idle")

    def drop_one_pin(self, now_s: float, reason: str) -> bool:
        """Unpins the agent pinned longest ago; False when nothing is pinned."""
        resident = next(iter(self._pinned.values()), None)
        if resident is None:
            return False
        self.unpin(resident, now_s, reason)
        return True

    def clear(self) -> None:
        """The tree was reset, and every pin with it."""
        self._pinned.clear()
        self._critical.clear()
        self._residents.clear()

    # -- the working set ----------------------------------------------------------------------

    def request_began(self, agent: Agent, now_s: float) -> None:
        self._agents.setdefault(agent.key.application, {})[agent.key] = agent
        self._tell_working_set(agent.key.application, now_s)

    def request_ended(self, agent: Agent, now_s: float) -> None:
        """A request of the agent's is over, also one that took no turn: it was aborted."""
        running = self._running.get(agent.key.application, {})
        agents = self._agents.get(agent.key.application, {}).values()
        for rid in [rid for rid in running if not any(rid in other.rids for other in agents)]:
            del running[rid]
        self._tell_working_set(agent.key.application, now_s)

    def admitted(self, agent: Agent, req: "Req", now_s: float) -> None:
        application = agent.key.application
        tokens = len(req.origin_input_ids) + len(req.output_ids)
        self._running.setdefault(application, {})[req.rid] = tokens
        self._tell_working_set(application, now_s)

    def took_turn(self, resident: Resident, rid: str, now_s: float) -> None:
        """The request has ended, and the application's paths in the tree are others now."""
        application = resident.agent.key.application
        self._running.get(application, {}).pop(rid, None)
        self._tell_working_set(application, now_s)
        residents = self._residents.setdefault(application, {})
        residents[resident.agent.key] = resident
        paths = (self.cache.path(other.leaf_id) for other in residents.values())
        nodes = {node.id: len(node.key) for path in paths for node in path}
        self.working_set.grow(application, sum(nodes.values()))

    def agent_left(self, agent: Agent) -> None:
        """Finished or forgotten; with its last agent an application leaves the working set."""
        application = agent.key.application
        for known in (self._agents, self._residents):
            if (agents := known.get(application)) is not None:
                agents.pop(agent.key, None)
        if not self._agents.get(application):
            for state in (self._agents, self._residents, self._running):
                state.pop(application, None)
            self.working_set.leave(application)

    def is_outside(self, req: "Req") -> bool:
        """Whether the request's application takes no part and there is no room for it."""
        agent = self.agent_of(req)
        if agent is None or agent.key.application in self.working_set:
            return False
        tokens = len(req.origin_input_ids)
        if self.working_set.has_room(tokens, self._now_s):
            return False
        self._drop_idle_members()
        if self.working_set.has_room(tokens, self._now_s):
            return False
        if self._newcomer_tokens is None:
            self._newcomer_tokens = tokens
        return True

    def enters(self, req: "Req") -> None:
        """The request was admitted: its application takes part."""
        agent = self.agent_of(req)
        if agent is not None:
            tokens = len(req.origin_input_ids)
            self.working_set.enter(agent.key.application, tokens, self._now_s)

    def may_enter(self) -> bool:
        """Whether there is room by now for the newcomer that the last attempt left outside."""
        tokens = self._newcomer_tokens
        return tokens is not None and self.working_set.has_room(tokens, self._now_s)

    def _drop_idle_members(self) -> None:
        """Whoever neither asks nor calls takes no part; when it is back, its age lets it in first."""
        for application in list(self.working_set.members):
            agents = self._agents.get(application, {}).values()
            if all(
                agent.state in (AgentState.IDLE, AgentState.FINISHED)
                and self._now_s - agent.last_event_s > self.idle_pin_s
                for agent in agents
            ):
                self.working_set.leave(application)

    def _tell_working_set(self, application: str, now_s: float) -> None:
        running = self._running.get(application, {})
        agents = self._agents.get(application, {}).values()
        waits = any(rid not in running for agent in agents for rid in agent.rids)
        self.working_set.update(
            application, now_s, running_tokens=sum(running.values()), waits=waits
        )

    # -- admission ----------------------------------------------------------------------------

    def withheld_tokens(self, running: "Sequence[Req]") -> int:
        """What a request that is not critical must leave free.

        As much of the reserve as critical agents need that wait, or will be back within
        ``RETURN_HORIZON_S``: what nobody needs soon is lent to everybody.
        """
        if self.partitions.reserve_tokens == 0:
            return 0
        soon_s = self._now_s + RETURN_HORIZON_S
        needed = self._waiting_need_tokens
        for resident in self._critical.values():
            if resident.return_s is not None and resident.return_s <= soon_s:
                needed += resident.tokens + GROWTH_TOKENS
        if needed == 0:
            return 0
        held = self.cache.pinned_tokens(list(self._pinned))
        for req in running:
            agent = self.agent_of(req)
            if agent is not None and self.is_critical(agent):
                pinned = self._pinned.get(pin_holder(agent.key))
                tokens = len(req.origin_input_ids) + len(req.output_ids)
                held += max(0, tokens - (pinned.tokens if pinned is not None else 0))
        return self.partitions.withheld_tokens(held, needed)

    def order(self, waiting_queue: "list[Req]") -> None:
        """Sorts the queue in place, and notes what its critical requests need."""
        queue: list[Queued | None] = []
        self._waiting_need_tokens = 0
        self._newcomer_tokens = None
        for req in waiting_queue:
            agent = self.agent_of(req)
            if agent is not None and self.is_critical(agent):
                self._waiting_need_tokens += len(req.origin_input_ids) + GROWTH_TOKENS
            queue.append(None if agent is None else self._queued(agent))
        self.untagged_waiting = None in queue
        self.critical_waiting = sum(request is not None and request.critical for request in queue)
        if any(request is not None for request in queue):
            waiting_queue[:] = [waiting_queue[place] for place in admission_order(queue)]

    def _queued(self, agent: Agent) -> Queued:
        return Queued(
            critical=self.is_critical(agent),
            application_order=agent.application_order,
            outside=agent.key.application not in self.working_set,
        )

    # -- for status ---------------------------------------------------------------------------

    def snapshot(self) -> dict[str, int]:
        return {
            "working_set_applications": len(self.working_set.members),
            "working_set_demand_tokens": int(self.working_set.demand_tokens(self._now_s)),
            "reserve_tokens": self.partitions.reserve_tokens,
            "critical_agents": len(self._critical),
            "pinned_agents": len(self._pinned),
            "pinned_tokens": self.cache.pinned_tokens(list(self._pinned)),
        }
