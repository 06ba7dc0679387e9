"""ThunderAgent: whole programs are paused and resumed so that their working sets fit.

Sources: arXiv 2602.13692 and the authors' router (``ThunderAgent-org/ThunderAgent``,
``scheduler/router.py``, ``backend/state.py``), whose constants are below.

- Every ``TICK_S`` seconds: sum of c_p over reasoning programs + sum of c_q * 2**-t_q over acting
  ones, with ``BUFFER_TOKENS`` for each, must not exceed C; t_q is how long q has been acting.
  What the engine measures as shared between programs is taken off.
- Above C programs are paused by S_pause = 1/c + 1[acting], largest first: acting programs, then
  those that reason, small ones first. A program that runs is marked, and paused at its next tool
  boundary.
- With room, they are resumed by S_restore = 1/c + 1[reasoning], largest first: those with a
  request, then new ones, then those still acting, small ones first; best fit decreasing over the
  replicas, which for one replica is the same set. Nobody waits longer than ``LONGEST_PAUSE_S``.
- A new program starts at once if none is paused and it fits.

Not in the sources, and chosen here:

- C is the device's pool, with the host tier under it as what the engine reloads from. ``WithHost``
  takes 95 % of both tiers, as the port in NVIDIA Dynamo 1.6 does; where everything fits into the
  host tier that pauses nobody and is the server as it is: the device's pool served better.
- A program with several branches is paused when its last running request ends; requests queued
  meanwhile are held back, being at a boundary already.
- A paused program's KV is left to the engine's eviction, as in the authors' router, which knows
  nothing of the engine's cache.
- If no program is active the first in the order of S_restore is resumed, fit or not. A paused
  program whose request the engine admits because nothing else runs counts as resumed.
- Size and status of a program with several branches: see ``programs``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.rivals.programs import Program, Programs, admitted_first, untagged_tokens
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.policy import Decision, Knowledge, Policy, Request, View

TICK_S = 5.0
BUFFER_TOKENS = 100
LONGEST_PAUSE_S = 1800.0
HOST_SHARE = 0.95


@dataclass
class ThunderAgent(Policy):
    """Working-set control of programs within the device's pool."""

    refusal_ends_pass = True
    reopens_admission = True

    programs: Programs = field(default_factory=Programs)
    paused_s: dict[str, float] = field(default_factory=dict)
    """Paused program → since when."""
    marked: set[str] = field(default_factory=set)
    """Programs that will be paused when nothing of them runs."""
    shared_tokens: int = 0
    untagged_tokens: int = 0
    _next_tick_s: float = 0.0

    @property
    def capacity_tokens(self) -> float:
        return self.machine.pool_tokens

    def prepare(self, knowledge: Knowledge) -> None:
        super().prepare(knowledge)
        self.programs.workflow = knowledge.workflow

    # -- told ---------------------------------------------------------------------------------

    def request_queued(self, request: Request, now_s: float) -> None:
        if request.agent is None:
            return
        is_new = request.program not in self.programs.by_name
        # Before the newcomer counts among the active programs.
        room = self.room_tokens(now_s) if is_new and not self.paused_s else 0.0
        program = self.programs.request_queued(request, now_s)
        if is_new and room < program.tokens + BUFFER_TOKENS:
            self.paused_s[program.name] = now_s

    def request_admitted(self, request: Request, now_s: float) -> None:
        if request.agent is not None:
            self.programs.request_admitted(request, now_s)
            self.paused_s.pop(request.program, None)

    def request_retracted(self, request: Request, now_s: float) -> None:
        self.programs.request_retracted(request, now_s)

    def request_finished(self, request: Request, now_s: float) -> None:
        program = self.programs.request_finished(request, now_s)
        if program.name in self.marked and not program.running:
            self._pause(program, now_s)

    def agent_finished(self, key: AgentKey, now_s: float) -> None:
        if (program := self.programs.agent_finished(key)) is not None:
            self.paused_s.pop(program.name, None)
            self.marked.discard(program.name)

    # -- the working set ----------------------------------------------------------------------

    def demand_tokens(self, program: Program, now_s: float) -> float:
        """c, or c * 2**-t while acting, and the buffer."""
        return program.tokens * 2.0 ** -program.acting_s(now_s) + BUFFER_TOKENS

    def active(self) -> list[Program]:
        return [p for p in self.programs.by_name.values() if p.name not in self.paused_s]

    def room_tokens(self, now_s: float) -> float:
        """What is left of C; negative when programs have to be paused. The marked are gone."""
        active = [program for program in self.active() if program.name not in self.marked]
        used = sum(self.demand_tokens(program, now_s) for program in active)
        return self.capacity_tokens - self.untagged_tokens - used + self.shared_tokens

    # -- asked --------------------------------------------------------------------------------

    def decide(self, view: View) -> Iterable[Decision]:
        if view.now_s >= self._next_tick_s:
            self._next_tick_s = view.now_s + TICK_S
            self.tick(view)
        return ()

    def tick(self, view: View) -> None:
        """Resumes, then pauses, as the authors' scheduler loop does."""
        running = [program for program in self.programs.by_name.values() if program.running]
        in_use = self.machine.pool_tokens - view.free_tokens - view.evictable_tokens
        self.untagged_tokens = untagged_tokens(view)
        held = self.untagged_tokens + sum(program.running_tokens for program in running)
        self.shared_tokens = max(0, held - in_use) if running else 0
        self._resume(view.now_s)
        self._pause_until_it_fits(view.now_s)

    def _resume(self, now_s: float) -> None:
        for name, since_s in list(self.paused_s.items()):
            if now_s - since_s >= LONGEST_PAUSE_S:
                del self.paused_s[name]
        room = self.room_tokens(now_s)
        waiting = [self.programs.by_name[name] for name in self.paused_s]
        nobody_active = len(waiting) == len(self.programs.by_name)
        for program in sorted(waiting, key=restore_order):
            needed = program.tokens + BUFFER_TOKENS
            if needed <= room or nobody_active:
                nobody_active = False
                room -= needed
                del self.paused_s[program.name]

    def _pause_until_it_fits(self, now_s: float) -> None:
        room = self.room_tokens(now_s)
        for program in sorted(self.active(), key=pause_order):
            if room >= 0:
                return
            if program.name in self.marked:
                continue
            room += self.demand_tokens(program, now_s)
            if program.running:
                self.marked.add(program.name)
            else:
                self._pause(program, now_s)

    def _pause(self, program: Program, now_s: float) -> None:
        self.marked.discard(program.name)
        self.paused_s[program.name] = now_s

    def order(self, view: View) -> Sequence[int]:
        """The server's own order; the requests of paused programs behind all others."""
        return admitted_first(self, view)

    def admits(self, request: Request, view: View) -> bool:
        return request.program not in self.paused_s and request.program not in self.marked


@dataclass
class WithHost(ThunderAgent):
    """C as in Dynamo's port for SGLang with HiCache."""

    @property
    def capacity_tokens(self) -> float:
        return HOST_SHARE * (self.machine.pool_tokens + self.machine.host_tokens)


def pause_order(program: Program) -> tuple[float, ...]:
    """S_pause = 1/c + 1[acting], largest first; then the latest to arrive."""
    return (-(1.0 / max(program.tokens, 1) + (not program.reasoning)), -program.order)


def restore_order(program: Program) -> tuple[float, ...]:
    """S_restore = 1/c + 1[reasoning], largest first; new programs after those that return."""
    return (
        not program.reasoning,
        program.turns == 0,
        -1.0 / max(program.tokens, 1),
        program.order,
    )
