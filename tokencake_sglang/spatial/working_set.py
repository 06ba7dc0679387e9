"""Which applications take part: as many as the device can serve without making each other wait.

An application of agents that take turns with tools needs the device only part of the time. Its
*demand* is the number of tokens that its running requests hold on average. While the demands of
all that take part stay within the pool, a returning turn seldom finds the memory taken; the rest
waits outside, once, and not at each of its turns.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from tokencake_sglang.spatial.shares import DEFAULT_TENANT

PRIOR_S = 60.0
"""For how long a newcomer's demand is taken to be its first prompt, all of the time."""


class Member(msgspec.Struct, gc=False):
    """An application that takes part.

    ``token_s`` is the integral of ``running_tokens`` over ``life_s``, the seconds in which it was
    not merely kept waiting; ``footprint_tokens`` what its agents have in the tree on either tier.
    """

    first_tokens: int
    since_s: float
    footprint_tokens: int = 0
    running_tokens: int = 0
    waits: bool = False
    token_s: float = 0.0
    life_s: float = 0.0

    def settle(self, now_s: float) -> None:
        """Brings the integrals up to ``now_s``."""
        self.token_s, self.life_s = self._integrals(now_s)
        self.since_s = max(now_s, self.since_s)

    def demand_tokens(self, now_s: float) -> float:
        """What its running requests hold on average. Changes nothing: ranks may be asked at
        different times and must go on alike to the last bit."""
        token_s, life_s = self._integrals(now_s)
        return (self.first_tokens * PRIOR_S + token_s) / (PRIOR_S + life_s)

    def _integrals(self, now_s: float) -> tuple[float, float]:
        if self.waits and not self.running_tokens:
            return self.token_s, self.life_s
        passed_s = max(0.0, now_s - self.since_s)
        return self.token_s + passed_s * self.running_tokens, self.life_s + passed_s


@dataclass(slots=True)
class WorkingSet:
    """The applications that take part.

    A newcomer enters while the sum of demands and its prompt fits ``device_tokens``, and the sum
    of footprints and its prompt ``kept_tokens``: what idles must find room on the device or the host,
    or it is computed again at each turn. An empty set takes anybody, so somebody always takes part.

    A member may pause. It counts no more then, and its next turn enters without being asked for
    room: what it has begun would otherwise wait behind newcomers' rules, turn by turn.

    ``quotas``: by tenant, the part of both that its own members and its newcomer's prompt have to
    fit. A tenant without any member may always have one, as far as the quota goes.
    """

    device_tokens: int
    kept_tokens: int
    members: dict[str, Member] = field(default_factory=dict)
    quotas: Mapping[str, float] = field(default_factory=dict)
    _paused: set[str] = field(default_factory=set)
    _tenants: dict[str, str] = field(default_factory=dict)  # of members whose tenant has a quota

    def __contains__(self, application: str) -> bool:
        return application in self.members

    def has_entered(self, application: str) -> bool:
        """Whether it is a member or pauses."""
        return application in self.members or application in self._paused

    def has_room(self, prompt_tokens: int, now_s: float) -> bool:
        """Whether there is room for an application with this first prompt, whosever it is."""
        return self._fits(self.members.values(), prompt_tokens, now_s, part=1.0)

    def within_quota(self, tenant: str, prompt_tokens: int, now_s: float) -> bool:
        """Whether the tenant's quota leaves room for another application with this first prompt."""
        quota = self.quotas.get(tenant)
        if quota is None:
            return True
        own = [self.members[application] for application in self.members_of(tenant)]
        return self._fits(own, prompt_tokens, now_s, part=quota)

    def members_of(self, tenant: str) -> list[str]:
        """Applications that entered on the account of a tenant that has a quota."""
        return [application for application, whose in self._tenants.items() if whose == tenant]

    def _fits(
        self, members: Collection[Member], prompt_tokens: int, now_s: float, *, part: float
    ) -> bool:
        """Whether the prompt fits beside ``members`` in this part of either. Without any
        it always does."""
        if not members:
            return True
        footprint = sum(member.footprint_tokens for member in members)
        if footprint + prompt_tokens > part * self.kept_tokens:
            return False
        demand = sum(member.demand_tokens(now_s) for member in members)
        return demand + prompt_tokens <= part * self.device_tokens

    def demand_tokens(self, now_s: float) -> float:
        """What the members' running requests hold on average, together."""
        return sum(member.demand_tokens(now_s) for member in self.members.values())

    def enter(
        self, application: str, prompt_tokens: int, now_s: float, tenant: str = DEFAULT_TENANT
    ) -> None:
        """Takes the application in, room or not; a member stays as it is."""
        if application not in self.members:
            self._paused.discard(application)
            self.members[application] = Member(prompt_tokens, now_s, prompt_tokens)
            if tenant in self.quotas:
                self._tenants[application] = tenant

    def update(self, application: str, now_s: float, *, running_tokens: int, waits: bool) -> None:
        """What the application does from now on; nothing for one that takes no part."""
        member = self.members.get(application)
        if member is not None:
            member.settle(now_s)
            member.running_tokens, member.waits = running_tokens, waits

    def grow(self, application: str, footprint_tokens: int) -> None:
        """What the application's agents now have in the tree."""
        member = self.members.get(application)
        if member is not None:
            member.footprint_tokens = footprint_tokens

    def pause(self, application: str) -> None:
        """Makes a member's room free and lets it enter again unasked."""
        if application in self.members:
            self._drop(application)
            self._paused.add(application)

    def leave(self, application: str) -> None:
        """Forgets the application: it would come back as a newcomer."""
        self._drop(application)
        self._paused.discard(application)

    def _drop(self, application: str) -> None:
        self.members.pop(application, None)
        self._tenants.pop(application, None)
