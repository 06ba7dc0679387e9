"""InferCept: an interception preserves, swaps or discards, whichever wastes least (2402.01869).

Formulas and order are those of the paper's released code (WukLab/InferCept, scheduler_v2.py);
waste is in token·seconds. Each iteration, the contexts of intercepted requests that are on the
device are looked at from the largest min(W_preserve, W_discard) down: swapping wastes nothing
while it hides behind the forward pass, so the first get that budget; for the rest the smaller
waste decides between preserving and discarding. An original request is an application here: its
agents' turns are what one intercepted request's segments are there.

Chosen where the source is silent, or where an application's agents are no chain:

- Remaining time: what the caller declared less what has passed, as the code's API time; without a
  declaration, or once it is over, the time that has passed, the paper's estimate for unknown ones.
- A resumed request that waits for admission, and the request that follows a turn without a call,
  still have their context: the released code swaps whom it cannot run and never loses it to
  others. Here they stay candidates, and the time that they have waited is their remaining time.
- C is the whole context, though agents share prefixes. A swap copies what has no host copy yet.
  It is not begun when the way out and back takes longer than the call, and slots are given up
  only while somebody waits for them.
- f(x) = a·x + c and the saturation point are fitted to the offline profile: c is what a longer
  prompt does not add to, and what the shortest one takes beyond c is filled by ``saturation``
  tokens. Without a profile they are the released code's constants, measured on another machine.
- The budget is link speed × the last iteration's time. A context larger than that takes several
  iterations' budget (chunked swapping). Swap-in is SGLang's load-back, hidden layer by layer.
- Nothing continues a turn: its memory is free, as a finished request's. Then memory that has a
  host copy goes, then the least recently used; preserved contexts are pinned.
- Queue: resumed or retracted first, then new ones, either by the original request's arrival.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.rivals.turns import Turn, Turns
from benchmarks.rivals.waste import Profile, discard_waste, preserve_waste
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call
from tokencake_sglang.policy import (
    Decision,
    Discard,
    EvictionCandidate,
    Insure,
    Keep,
    Knowledge,
    LetGo,
    Policy,
    Release,
    Request,
    View,
)


@dataclass
class InferCept(Policy):
    """Min-waste interception."""

    automatic_backup = False
    reopens_admission = True
    orders_eviction = True

    turns: Turns = field(default_factory=Turns, init=False)
    profile: Profile = field(default_factory=Profile, init=False)
    _live: dict[AgentKey, Turn] = field(default_factory=dict, init=False)
    """Turns that something will continue."""
    _swapped: set[AgentKey] = field(default_factory=set, init=False)
    _link_debt_tokens: float = field(default=0.0, init=False)
    _last_step_s: float = field(default=0.0, init=False)

    # -- told ---------------------------------------------------------------------------------

    def prepare(self, knowledge: Knowledge) -> None:
        super().prepare(knowledge)
        self.turns.workflow = knowledge.workflow
        self.profile = Profile.fitted(knowledge.prefill_s)

    def request_queued(self, request: Request, now_s: float) -> None:
        self.turns.request_queued(request, now_s)

    def request_admitted(self, request: Request, now_s: float) -> None:
        for turn in self.turns.request_admitted(request):
            self._forget(turn.key)

    def request_finished(self, request: Request, now_s: float) -> None:
        turn = self.turns.request_finished(request, now_s)
        if turn is not None:
            self._forget(turn.key)
            if self.turns.is_continued(turn):
                self._live[turn.key] = turn

    def call_started(self, agent: Agent, call: Call, now_s: float) -> None:
        self.turns.call_started(agent, call)

    def agent_finished(self, key: AgentKey, now_s: float) -> None:
        self._forget(key)
        self.turns.agent_finished(key)

    def _forget(self, key: AgentKey) -> None:
        self._live.pop(key, None)
        self._swapped.discard(key)

    # -- asked --------------------------------------------------------------------------------

    def decide(self, view: View) -> Iterator[Decision]:
        budget = self.machine.link_tokens_per_s * (view.now_s - self._last_step_s)
        self._last_step_s = view.now_s
        self._link_debt_tokens = max(self._link_debt_tokens - budget, 0.0)
        if view.left_waiting:
            for key in self._swapped:
                yield Release(key, "swapped")
        running_tokens = sum(request.tokens for request in view.running)
        for waste, turn, w_discard in self._candidates(view, running_tokens):
            key = turn.key
            remaining_s = self.remaining_s(turn, view.now_s)
            copied = view.cached(key).uncopied_tokens
            if (
                waste > 0.0
                and self._link_debt_tokens < max(budget, 1.0)
                and remaining_s > 2 * self.machine.transfer_s(copied)
            ):
                if view.is_kept(key):
                    yield LetGo(key, "swap")
                yield Insure(key, "least waste")
                if view.cached(key).uncopied_tokens == 0:  # else the host had no room
                    self._link_debt_tokens += copied
                    self._swapped.add(key)
                    continue
            if w_discard < preserve_waste(turn.tokens, remaining_s):
                if view.is_kept(key):
                    yield LetGo(key, "discard")
                yield Discard(key, "least waste")
                self._live.pop(key)
            elif not turn.decided:  # whose pin was taken does not ask for it again
                turn.decided = True
                yield Keep(key, "least waste")

    def _candidates(self, view: View, running_tokens: int) -> list[tuple[float, Turn, float]]:
        """Contexts on the device, the largest least waste first."""
        found = []
        for turn in self._live.values():
            if turn.key not in self._swapped:
                w_discard = discard_waste(
                    turn.tokens, len(view.running), running_tokens, self.profile
                )
                w_preserve = preserve_waste(turn.tokens, self.remaining_s(turn, view.now_s))
                found.append((min(w_preserve, w_discard), turn, w_discard))
        found.sort(key=lambda candidate: -candidate[0])
        return found

    def remaining_s(self, turn: Turn, now_s: float) -> float:
        """Estimated time until the context is used."""
        if turn.returned_s is not None:
            return now_s - turn.returned_s
        call = turn.call
        if call is not None and call.predicted_s is not None:
            left_s = call.started_s + call.predicted_s - now_s
            if left_s > 0.0:
                return left_s
        return now_s - turn.ended_s

    def order(self, view: View) -> Sequence[int]:
        queue = view.queue
        turns = self.turns

        def rank(place: int) -> tuple[bool, float, float]:
            request = queue[place]
            new = not turns.was_served(request) and request.retractions == 0
            return (new, turns.arrival_s(request), request.queued_s)

        return sorted(range(len(queue)), key=rank)

    def eviction_rank(self, node: EvictionCandidate) -> tuple[float, ...]:
        live = any(key in self._live for key in node.agents)
        return (live, live and not node.on_host, node.last_access)

    def gives_up(self, kept: Sequence[AgentKey], view: View) -> AgentKey:
        """The latest original request's, as the released code preempts."""
        arrived_s = self.turns.arrived_s
        return max(reversed(kept), key=lambda key: arrived_s.get(key.application, 0.0))
