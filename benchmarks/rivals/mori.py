"""MORI: programs ranked by idleness; the busiest have the device, the idlest the host, rest wait.

Source: Xia et al., "Idleness is Relative" (arXiv 2606.00866); no code is published. The abstract
was read, the rest is known from public reviews of the full text:

- Idleness = T_acting / (T_reasoning + T_acting) over the last five cycles; the call under way
  counts as far as it has gone, waiting for the scheduler does not count.
- Three tiers: device, host, waiting (KV may be discarded). Only the device tier is admitted.
- Every ``TICK_S`` seconds the idlest leave a device tier that is too large, acting ones before
  those that reason, which go when their turn ends; to the host tier if they fit, else waiting.
- With room, programs with a request are promoted: from the host tier, then waiting ones that
  return, then new ones; the least idle first, among those that wait the smallest.
- Sticky: a program stays where it is unless a boundary is crossed.
- KV is labelled by its program's tier. The device evicts inactive, idle (host tier), busy (device
  tier), the host inactive, busy, idle; each least recently used first. Loads are on demand.

Not in the source, or not known from it, and chosen here:

- Size and status of a program with several branches: see ``programs``. A newcomer's idleness is 0.
- 100 tokens are set aside for each program, as in ThunderAgent, on which MORI is built. Promotion
  does not wait for the tick: a program that returns to free room has it at once.
- The boundary shifts: a program with a request that finds no room takes the place of acting ones
  that are idler than it, the idlest first, if that is room enough.
- A demoted program's KV is labelled, not released: the engine gives it up before all busy KV when
  memory is needed, and as write-through has copied it, that costs nothing then.
- The host tier's whole size counts: its copies of busy KV are the first to go.
- With an empty device tier the first in line is promoted, fit or not. A program whose request the
  engine admits because nothing else runs is in the device tier.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from benchmarks.rivals.programs import Program, Programs, admitted_first, untagged_tokens
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.policy import Decision, EvictionCandidate, Knowledge, Policy, Request, View

TICK_S = 5.0
BUFFER_TOKENS = 100


class Tier(IntEnum):
    """Where a program belongs; the order in which the device evicts."""

    WAITING = 0
    HOST = 1
    DEVICE = 2


EVICTION_ON_HOST = {Tier.WAITING: 0, Tier.DEVICE: 1, Tier.HOST: 2}


@dataclass
class Mori(Policy):
    """Three tiers of programs, by relative idleness."""

    orders_eviction = True
    reopens_admission = True
    refusal_ends_pass = True

    programs: Programs = field(default_factory=Programs)
    tiers: dict[str, Tier] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)
    """Programs of the device tier that will be demoted when nothing of them runs."""
    untagged_tokens: int = 0
    _next_tick_s: float = 0.0
    _stirred: bool = False

    def prepare(self, knowledge: Knowledge) -> None:
        super().prepare(knowledge)
        self.programs.workflow = knowledge.workflow

    # -- told ---------------------------------------------------------------------------------

    def request_queued(self, request: Request, now_s: float) -> None:
        if request.agent is not None:
            self.programs.request_queued(request, now_s)
            self.tiers.setdefault(request.program, Tier.WAITING)
            self._stirred = True

    def request_admitted(self, request: Request, now_s: float) -> None:
        if request.agent is not None:
            self.programs.request_admitted(request, now_s)
            self.tiers[request.program] = Tier.DEVICE

    def request_retracted(self, request: Request, now_s: float) -> None:
        self.programs.request_retracted(request, now_s)

    def request_finished(self, request: Request, now_s: float) -> None:
        program = self.programs.request_finished(request, now_s)
        if program.name in self.leaving and not program.running:
            self._demote(program)
        self._stirred = True

    def agent_finished(self, key: AgentKey, now_s: float) -> None:
        if (program := self.programs.agent_finished(key)) is not None:
            self.tiers.pop(program.name, None)
            self.leaving.discard(program.name)
            self._stirred = True

    # -- capacities ---------------------------------------------------------------------------

    def members(self, tier: Tier) -> list[Program]:
        return [p for p in self.programs.by_name.values() if self.tiers.get(p.name) is tier]

    def room_tokens(self, tier: Tier) -> int:
        """What the tier could still take; those that will leave have left."""
        on_device = self.machine.pool_tokens - self.untagged_tokens
        size = on_device if tier is Tier.DEVICE else self.machine.host_tokens
        return size - sum(
            needed_tokens(p) for p in self.members(tier) if p.name not in self.leaving
        )

    def _demote(self, program: Program) -> None:
        self.leaving.discard(program.name)
        fits = needed_tokens(program) <= self.room_tokens(Tier.HOST)
        self.tiers[program.name] = Tier.HOST if fits else Tier.WAITING

    # -- asked --------------------------------------------------------------------------------

    def decide(self, view: View) -> Iterable[Decision]:
        if view.now_s >= self._next_tick_s:
            self._next_tick_s = view.now_s + TICK_S
            self.untagged_tokens = untagged_tokens(view)
            self.demote(view.now_s)
            self._stirred = True
        if self._stirred:
            self.promote(view.now_s)
        self._stirred = False
        return ()

    def demote(self, now_s: float) -> None:
        """Until the device tier fits, the idlest leave it."""
        room = self.room_tokens(Tier.DEVICE)
        stay = [p for p in self.members(Tier.DEVICE) if p.name not in self.leaving]
        for program in sorted(stay, key=lambda p: (-p.idleness(now_s), p.reasoning, -p.order)):
            if room >= 0:
                break
            room += needed_tokens(program)
            if program.running:
                self.leaving.add(program.name)
            else:
                self._demote(program)

    def promote(self, now_s: float) -> None:
        """Programs with a request come to the device as far as there is room, or idler ones."""
        programs = self.programs.by_name.values()
        waiting = [p for p in programs if p.queued and self.tiers[p.name] is not Tier.DEVICE]
        if not waiting:
            return
        room = self.room_tokens(Tier.DEVICE)
        empty = not self.members(Tier.DEVICE)
        for program in sorted(waiting, key=lambda p: self._place_in_line(p, now_s)):
            needed = needed_tokens(program)
            if needed > room:
                room += self._make_room(needed - room, program, now_s)
            if needed <= room or empty:
                room -= needed
                empty = False
                self.tiers[program.name] = Tier.DEVICE

    def _place_in_line(self, program: Program, now_s: float) -> tuple[float, ...]:
        waits = self.tiers[program.name] is Tier.WAITING
        size = program.tokens if waits else 0
        return (waits, waits and program.turns == 0, program.idleness(now_s), size, program.order)

    def _make_room(self, tokens: int, newcomer: Program, now_s: float) -> int:
        """Demotes acting programs that are idler than the newcomer if that frees ``tokens``."""
        acting = [program for program in self.members(Tier.DEVICE) if not program.reasoning]
        idler = [p for p in acting if p.idleness(now_s) > newcomer.idleness(now_s)]
        freed, leaving = 0, []
        for program in sorted(idler, key=lambda p: -p.idleness(now_s)):
            if freed < tokens:
                freed += needed_tokens(program)
                leaving.append(program)
        if freed < tokens:
            return 0
        for program in leaving:
            self._demote(program)
        return freed

    def order(self, view: View) -> Sequence[int]:
        """The server's own order; the requests of other tiers behind the device tier's."""
        return admitted_first(self, view)

    def admits(self, request: Request, view: View) -> bool:
        name = request.program
        on_device = self.tiers.get(name) is Tier.DEVICE and name not in self.leaving
        return request.agent is None or on_device

    def eviction_rank(self, node: EvictionCandidate) -> tuple[float, ...]:
        owners = [self.tiers.get(key.application, Tier.WAITING) for key in node.agents]
        if not node.on_device:
            owners = [EVICTION_ON_HOST[tier] for tier in owners]
        return (max(owners, default=0), node.last_access)


def needed_tokens(program: Program) -> int:
    return program.tokens + BUFFER_TOKENS
