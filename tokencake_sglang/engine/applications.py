"""What each application runs, waits for and has in the tree: who takes part in the working set."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tokencake_sglang.agents.events import ApplicationStart
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, AgentState
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.request_tag import is_tagged
from tokencake_sglang.engine.residents import Resident
from tokencake_sglang.engine.turns import Turns
from tokencake_sglang.spatial.order import turn_to_enter_s
from tokencake_sglang.spatial.shares import DEFAULT_TENANT, UNTAGGED, Shares, Tenant
from tokencake_sglang.spatial.working_set import WorkingSet

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

DEMAND_SHARE = 1.0
"""Part of the pool that the working set's average demands may fill."""

IDLE_S = 60.0
"""For each of its turns an application that neither asks nor calls keeps its part for so long, even
if a newcomer needs the room: the more often it came back, the longer it is expected to."""

MOST_IDLE_S = 600.0
"""It keeps its part in silence for no longer than this."""


class Outside(StrEnum):
    """What keeps a newcomer outside the working set, as the decision log names it."""

    NO_ROOM = "working_set"
    OVER_QUOTA = "tenant_quota"


@dataclass(slots=True)
class _Account:
    """What an application adds to its tenant's: tokens of running requests, and queued requests.

    ``came_s``: when the first of its open requests did. ``prompt_tokens``: of the prompt for which it
    was asked first when it may enter the working set. ``output_tokens``: what it declared last.
    """

    tenant: str
    came_s: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    tokens: int = 0
    queued: int = 0


class Applications:
    """Keeps the working set, from agents' requests and turns.

    Args:
        agents_in: the agents of an application that the rank knows.
        declared: what an application declared of itself.
        residents: the agents that have KV in the tree.
        pool_tokens: of the device.
        kept_tokens: what both tiers can hold between them.
        weights: of tenants; with one of ``UNTAGGED`` untagged requests are one, too.
        quotas: of tenants, as parts of the pool.
        bounded: whether newcomers wait outside while there is no room for them.
        knows_paths: whether anything is taken to be known of remaining paths (``turns``).
    """

    def __init__(
        self,
        cache: TokencakeCache,
        agent_of: "Callable[[Req], Agent | None]",
        agents_in: Callable[[str], list[Agent]],
        declared: Callable[[str], ApplicationStart | None],
        residents: Mapping[AgentKey, Resident],
        *,
        pool_tokens: int,
        kept_tokens: int,
        weights: Mapping[Tenant, float],
        quotas: Mapping[str, float],
        bounded: bool = True,
        knows_paths: bool = True,
    ) -> None:
        self.cache = cache
        self.agent_of = agent_of
        self.agents_in = agents_in
        self.declared = declared
        self.residents = residents
        self.working_set = WorkingSet(int(DEMAND_SHARE * pool_tokens), kept_tokens, quotas=quotas)
        self.shares = Shares(weights, pool_tokens)
        self.turns = Turns(agents_in, declared, knows_paths=knows_paths)
        self.bounded = bounded
        self._accounts: dict[str, _Account] = {}  # by application, of those that ask or run
        self._open: Counter[str] = Counter()  # requests, queued or running, by application
        self._running: dict[str, dict[str, Req]] = {}  # by application and SGLang's rid
        self._ended: set[str] = set()  # applications with a request that has ended since the step
        # Prompts, in tokens, of the first newcomers that the last attempt left outside: of the one
        # for which the pool had no room, and by tenant of those that a quota kept out.
        self._newcomer_tokens: int | None = None
        self._over_quota: dict[str, int] = {}
        self._declared_anew = False  # something, by a newcomer that waits, since the last attempt
        # Before then no member is idle for long enough: none at all, or by tenant with a quota.
        self._idle_from_s: dict[str | None, float] = {}
        self._left: tuple[str, int] | None = None  # the last to be over, and by which event
        self._seen_waiting: list[Req] = []
        self._seen_running: list[Req] = []
        self._untagged_running: list[Req] = []
        self._untagged_tokens = self._untagged_queued = 0

    # -- what happens to agents ---------------------------------------------------------------

    def request_began(self, agent: Agent, now_s: float) -> None:
        if agent.key.application not in self._accounts:
            tenant = agent.tenant or DEFAULT_TENANT
            self._accounts[agent.key.application] = _Account(tenant, now_s)
        self._open[agent.key.application] += 1
        self.turns.began(agent, now_s)
        self._tell(agent.key.application, now_s)

    def request_ended(self, agent: Agent, now_s: float) -> None:
        """A request of the agent's is over, also one that took no turn: it was aborted."""
        self.turns.ended(agent)
        self._open[agent.key.application] -= 1
        if not self._open[agent.key.application]:
            del self._open[agent.key.application]
        self._ended.add(agent.key.application)
        self._tell(agent.key.application, now_s)
        if agent.finished:
            self._leave_with_last_request(agent.key.application, now_s)

    def admitted(self, reqs: "Iterable[Req]", now_s: float) -> None:
        """A prefill batch was formed."""
        applications: dict[str, None] = {}
        for req in reqs:
            if (agent := self.agent_of(req)) is not None:
                applications[agent.key.application] = None
                self._running.setdefault(agent.key.application, {})[req.rid] = req
        for application in applications:
            self._tell(application, now_s)

    def took_turn(self, resident: Resident, rid: str, now_s: float) -> None:
        """The request has ended, and the application's paths in the tree are others now."""
        application = resident.agent.key.application
        self._running.get(application, {}).pop(rid, None)
        self._tell(application, now_s)
        leaf_ids = [
            other.leaf_id
            for agent in self.agents_in(application)
            if (other := self.residents.get(agent.key)) is not None and not agent.finished
        ]
        self.working_set.grow(application, self.cache.together_tokens(leaf_ids))

    def agent_left(
        self, agent: Agent, now_s: float, *, forgotten: bool = False, event: int
    ) -> None:
        """Finished or forgotten; with its last agent an application leaves the working set.

        Args:
            event: its number; one event can finish thousands of an application's agents, and what
                the first of them has ended is not looked for again.
        """
        application = agent.key.application
        self.turns.ended(agent)
        if not forgotten and self._left == (application, event):
            return
        others = self.agents_in(application)
        if all(other.finished for other in others):
            self._left = application, event
            if not others:
                self.turns.forget(application)
            if not self._open[application]:
                self._leave(application, now_s, finished=not forgotten)

    def _leave_with_last_request(self, application: str, now_s: float) -> None:
        """Agents may be said to have finished while requests of theirs are still queued or run."""
        if self._open[application]:
            return
        if all(other.finished for other in self.agents_in(application)):
            self._leave(application, now_s, finished=True)

    def _leave(self, application: str, now_s: float, *, finished: bool) -> None:
        self.turns.left(application, now_s, finished=finished)
        self._running.pop(application, None)
        self._ended.discard(application)
        self.working_set.leave(application)
        self._charge(application, now_s, tokens=0, queued=0)
        self.shares.forget_idle(now_s)

    def step(self, running: "Iterable[Req]", now_s: float) -> None:
        """Looks which requests still run, after some have ended. The event log cannot say: its
        numbers of requests are not SGLang's."""
        if not self._ended:
            return
        rids = {req.rid for req in running}
        for application in sorted(self._ended):
            known = self._running.get(application, {})
            left = {rid: req for rid, req in known.items() if rid in rids}
            if left:
                self._running[application] = left
            else:
                self._running.pop(application, None)
            self._tell(application, now_s)
            if len(left) <= self._open[application]:
                self._ended.discard(application)  # else one was aborted and runs for another step

    def look_at_untagged(
        self, waiting: "Sequence[Req]", running: "Sequence[Req]", now_s: float
    ) -> None:
        """Once a step, where untagged requests are a tenant: no event tells of them.

        Args:
            waiting, running: of all requests; empty while no agent is known, to share with.
        """
        queued, tokens = self._untagged_queued, self._untagged_tokens
        if waiting != self._seen_waiting:  # mostly the same, and then quickly said to be
            self._seen_waiting = list(waiting)
            queued = sum(not is_tagged(req) for req in waiting)
        if running != self._seen_running:
            self._seen_running = list(running)
            holding = [req for req in running if not req.finished() and not is_tagged(req)]
            if holding != self._untagged_running:
                self._untagged_running, tokens = holding, self._held_tokens(holding)
        more = tokens - self._untagged_tokens, queued - self._untagged_queued
        if more != (0, 0):
            self.shares.add(UNTAGGED, now_s, tokens=more[0], queued=more[1])
            self._untagged_tokens, self._untagged_queued = tokens, queued

    def untagged_ended(self) -> None:
        """One has: it holds nothing any more, although SGLang's batch has it for another step."""
        self._seen_running = []

    # -- admission ----------------------------------------------------------------------------

    def look_at_queue(self) -> None:
        """An attempt at admission begins."""
        self._newcomer_tokens = None
        self._over_quota.clear()
        self._declared_anew = False

    def declared_anew(self, application: str) -> None:
        """It said something of itself: if it waits outside, it may be another's turn to enter."""
        if application in self._accounts and not self.working_set.has_entered(application):
            self._declared_anew = True

    def takes_part(self, agent: Agent) -> bool:
        """Whether its application is a member, or was one until it fell silent."""
        return not self.bounded or self.working_set.has_entered(agent.key.application)

    def enters_s(self, agent: Agent, prompt_tokens: int, now_s: float) -> float:
        """When it is a newcomer's turn to enter, by the prompt of which this was asked first."""
        account = self._accounts.get(agent.key.application)
        if account is None:
            return turn_to_enter_s(now_s, prompt_tokens)
        if account.prompt_tokens is None:
            account.prompt_tokens = prompt_tokens
        # What it declared counts for requests that are still queued when it is said to be over.
        if (declared := self.declared(agent.key.application)) is not None:
            account.output_tokens = declared.expected_output_tokens
        return turn_to_enter_s(account.came_s, account.prompt_tokens, account.output_tokens)

    def tenant_of(self, agent: Agent) -> str:
        """On whose account the agent's application runs: what the first of its open requests said."""
        account = self._accounts.get(agent.key.application)
        return DEFAULT_TENANT if account is None else account.tenant

    def why_outside(self, req: "Req", now_s: float) -> Outside | None:
        """What keeps the request's application outside; None if it takes part or may enter.

        Remembers the first newcomer that is refused, and may end the part of members that are idle.
        """
        agent = self.agent_of(req)
        if agent is None or self.takes_part(agent):
            return None
        # An older one waits: a younger one that happens to be smaller does too. Where it is its
        # tenant's quota that the older one waits for, this goes for the same tenant's only.
        if self._newcomer_tokens is not None:
            return Outside.NO_ROOM
        tenant, tokens = self.tenant_of(agent), len(req.origin_input_ids)
        if tenant in self._over_quota:
            return Outside.OVER_QUOTA
        if not self.working_set.within_quota(tenant, tokens, now_s):
            self._drop_idle_members(now_s, tenant)
            if not self.working_set.within_quota(tenant, tokens, now_s):
                self._over_quota[tenant] = tokens
                return Outside.OVER_QUOTA
        if self.working_set.has_room(tokens, now_s):
            return None
        self._drop_idle_members(now_s)
        if self.working_set.has_room(tokens, now_s):
            return None
        self._newcomer_tokens = tokens
        return Outside.NO_ROOM

    def all_over_quota(self, tenants: AbstractSet[str]) -> bool:
        """Whether the attempt has found newcomers of all these tenants to be over their quotas."""
        return tenants <= self._over_quota.keys()

    def enters(self, req: "Req", now_s: float) -> None:
        """The request was admitted: its application takes part."""
        agent = self.agent_of(req)
        if agent is not None:
            tokens = len(req.origin_input_ids)
            tenant = self.tenant_of(agent)
            self.working_set.enter(agent.key.application, tokens, now_s, tenant)

    def may_enter(self, now_s: float) -> bool:
        """Whether there is room by now for a newcomer that the last attempt left outside, or there
        may be for another whose turn is before that one's now."""
        if self._declared_anew:
            return True
        tokens = self._newcomer_tokens
        if tokens is not None and self.working_set.has_room(tokens, now_s):
            return True
        return any(
            self.working_set.within_quota(tenant, tokens, now_s)
            and self.working_set.has_room(tokens, now_s)
            for tenant, tokens in self._over_quota.items()
        )

    def _drop_idle_members(self, now_s: float, tenant: str | None = None) -> None:
        """Whoever neither asks nor calls takes no part; when it is back, it does so at once.

        Args:
            tenant: only its members, where it is its quota that they fill.
        """
        if now_s < self._idle_from_s.get(tenant, 0.0):
            return
        members = (
            self.working_set.members if tenant is None else self.working_set.members_of(tenant)
        )
        # Whoever is not idle yet, or enters later, is so no sooner than this.
        idle_from_s = now_s + IDLE_S
        for application in list(members):
            agents = self.agents_in(application)
            if any(agent.state not in (AgentState.IDLE, AgentState.FINISHED) for agent in agents):
                continue
            patience_s = min(IDLE_S * max(1, sum(agent.turns for agent in agents)), MOST_IDLE_S)
            last_s = max((agent.last_event_s for agent in agents), default=-math.inf)
            if now_s - last_s > patience_s:
                self.working_set.pause(application)
            else:
                idle_from_s = min(idle_from_s, last_s + patience_s)
        self._idle_from_s[tenant] = idle_from_s

    def _tell(self, application: str, now_s: float) -> None:
        # A retracted one holds nothing and waits, until it is admitted anew.
        running = [r for r in self._running.get(application, {}).values() if r.lock is not None]
        asked = self._open[application]
        tokens = self._held_tokens(running)
        # One of the event log's requests may be several of SGLang's (parallel sampling).
        self._charge(application, now_s, tokens=tokens, queued=max(0, asked - len(running)))
        if application in self.working_set:
            self.working_set.update(
                application, now_s, running_tokens=tokens, waits=asked > len(running)
            )

    def _held_tokens(self, reqs: "Iterable[Req]") -> int:
        """What running requests hold, a prefix that several share once."""
        shared: dict[int, int] = {}
        own_tokens = 0
        for req in reqs:
            path = {node.id: len(node.key) for node in self.cache.path(req.last_node)}
            own_tokens += len(req.origin_input_ids) + len(req.output_ids) - sum(path.values())
            shared |= path
        return own_tokens + sum(shared.values())

    def _charge(self, application: str, now_s: float, *, tokens: int, queued: int) -> None:
        """Tells the shares what the application's tenant now holds and waits for."""
        account = self._accounts.get(application)
        if account is None:
            return
        more = tokens - account.tokens, queued - account.queued
        if more != (0, 0):
            self.shares.add(account.tenant, now_s, tokens=more[0], queued=more[1])
            account.tokens, account.queued = tokens, queued
        if not tokens and not self._open[application]:
            del self._accounts[application]  # most applications are in calls

    def snapshot(self, now_s: float) -> dict[str, int]:
        return {
            "working_set_applications": len(self.working_set.members),
            "working_set_demand_tokens": int(self.working_set.demand_tokens(now_s)),
        }
