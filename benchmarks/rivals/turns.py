"""Which request follows which turn: what Continuum's and InferCept's chains become in a graph."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call
from tokencake_sglang.agents.workflow import Step, Workflow
from tokencake_sglang.policy import Request

NO_CALL = ""
"""The tool of a turn that ended without a call."""


@dataclass(slots=True, eq=False)
class Turn:
    """An agent's last turn, until all that follows it is admitted.

    ``call`` is the call in which it stopped, also after that returned. ``waiting`` are the queued
    requests that follow it, ``returned_s`` is when the first of them came; ``followed`` says that
    one has been admitted. ``decided`` is for the policy.
    """

    rid: str
    key: AgentKey
    tokens: int
    ended_s: float
    call: Call | None = None
    returned_s: float | None = None
    waiting: dict[str, Request] = field(default_factory=dict)
    followed: bool = False
    decided: bool = False

    @property
    def tool(self) -> str:
        return NO_CALL if self.call is None else self.call.tool


class Turns:
    """The last turns of all agents, and when programs (applications) arrived.

    A request follows its own agent's last turn and those turns which, as its application
    declares, its prompt begins with. ``workflow`` is what was declared; None: nothing.
    """

    def __init__(self) -> None:
        self.workflow: Workflow | None = None
        self.by_agent: dict[AgentKey, Turn] = {}
        self.arrived_s: dict[str, float] = {}
        self._agents_of: dict[str, set[AgentKey]] = {}
        self._early_calls: dict[AgentKey, Call] = {}
        self._served: set[str] = set()

    def arrival_s(self, request: Request) -> float:
        """When the request's program arrived."""
        return self.arrived_s.get(request.program, request.queued_s)

    def request_queued(self, request: Request, now_s: float) -> list[Turn]:
        """Returns the turns that the request follows."""
        if request.key is None:
            return []
        self.arrived_s.setdefault(request.program, now_s)
        self._agents_of.setdefault(request.program, set()).add(request.key)
        turns = list(self._before(request))
        for turn in turns:
            turn.waiting[request.rid] = request
            if turn.returned_s is None:
                turn.returned_s = now_s
        return turns

    def request_admitted(self, request: Request) -> list[Turn]:
        """What the request follows is forgotten, unless others wait that follow it as well.

        Returns what was forgotten.
        """
        over = []
        for turn in list(self._before(request)):
            if turn.waiting.pop(request.rid, None) is not None:
                turn.followed = True
                if not turn.waiting:
                    del self.by_agent[turn.key]
                    over.append(turn)
        return over

    def was_served(self, request: Request) -> bool:
        """Whether a turn of the request's program has ended before."""
        return request.program in self._served

    def request_finished(self, request: Request, now_s: float) -> Turn | None:
        if request.key is None:
            return None
        self._served.add(request.program)
        call = self._early_calls.pop(request.key, None)
        turn = Turn(request.rid, request.key, request.tokens, now_s, call)
        self.by_agent[request.key] = turn
        return turn

    def call_started(self, agent: Agent, call: Call) -> Turn | None:
        """Returns the turn that stopped in the call, if its end is known already."""
        turn = self.by_agent.get(agent.key)
        if turn is None or turn.call is not None:
            self._early_calls[agent.key] = call
            return None
        turn.call = call
        return turn

    def agent_finished(self, key: AgentKey) -> bool:
        """Returns whether it was the last of its program's agents."""
        self.by_agent.pop(key, None)
        self._early_calls.pop(key, None)
        agents = self._agents_of.get(key.application)
        if agents is None:
            return False
        agents.discard(key)
        if agents:
            return False
        del self._agents_of[key.application], self.arrived_s[key.application]
        self._served.discard(key.application)
        return True

    def is_continued(self, turn: Turn) -> bool:
        """Whether a prompt will begin with what the turn generated; True if nothing is declared."""
        if self.workflow is None or turn.rid not in self.workflow.steps:
            return True
        steps = self.workflow.steps
        return any(
            _continues(steps[rid], steps[turn.rid]) for rid in self.workflow.successors[turn.rid]
        )

    def _before(self, request: Request) -> Iterator[Turn]:
        keys = {request.key: None}
        steps = {} if self.workflow is None else self.workflow.steps
        if (step := steps.get(request.rid)) is not None:
            for rid in step.wait_for:
                if _continues(step, steps[rid]):
                    keys[steps[rid].key] = None
        for key in keys:
            if key is not None and (turn := self.by_agent.get(key)) is not None:
                yield turn


def _continues(step: Step, before: Step) -> bool:
    return (step.reuses or {}).get(before.rid, 0) > before.prompt_tokens
