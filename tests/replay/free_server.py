"""A server as good as a lower bound must allow: its cache forgets nothing and its copies are free.

Forwards have whatever requests a random generator chooses, as many as fit; what one request of a
forward computes the others of the same forward have.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tokencake_sglang.replay.closed_loop import ClosedLoop, Dispatch
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Request, Workload
from tokencake_sglang.timewarp.cost import CostModel, Work

Prefix = tuple[tuple[str, int], ...]


@dataclass
class _State:
    request: Request
    prompt: list[Prefix]
    """Every prefix of it, the shortest first."""
    computed: int = 0
    generated: int = 0


@dataclass
class FreeServer:
    """Serves a workload once; ``eager``: how likely a forward has all that it can have, which is
    ``at_once`` requests at most."""

    workload: Workload
    cost: CostModel
    pool_tokens: int
    max_running_requests: int
    random: random.Random
    eager: float
    at_once: int = 1_000
    _cached: set[Prefix] = field(default_factory=set)
    _waiting: list[_State] = field(default_factory=list)
    _running: list[_State] = field(default_factory=list)

    def run(self) -> ClosedLoop:
        """The closed loop when all is done: its times are a schedule that is possible."""
        loop = ClosedLoop(self.workload)
        # Whose requests come first, so that some applications are done while others wait.
        self._rank = {name: self.random.random() for name in self.workload.applications}
        now_s = 0.0
        while not loop.done:
            self._receive(loop, now_s)
            batch: list[Work] = []
            ended: list[_State] = []
            if self._waiting and (not self._running or self.random.random() < 0.5):
                batch = self._prefill(ended)
            elif self._running:
                batch = self._decode(ended)
            elif loop.next_event_s is not None:
                now_s = loop.next_event_s
            if batch:
                now_s += self.cost.forward_s(batch)
                self._receive(loop, now_s)  # what happens meanwhile, before what ends now
            for state in ended:
                loop.finish(state.request.request_id, now_s)
        return loop

    def _receive(self, loop: ClosedLoop, now_s: float) -> None:
        for event in loop.pop_due(now_s):
            if isinstance(event, Dispatch):
                prompt = list(_prefixes(event.request.prompt))
                self._waiting.append(_State(event.request, prompt))

    def _prefill(self, ended: list[_State]) -> list[Work]:
        batch = []
        for state in self._chosen(self._waiting):
            found = state.computed
            while found < len(state.prompt) - 1 and state.prompt[found] in self._cached:
                found += 1
            left = len(state.prompt) - found
            new_tokens = left if self.random.random() < self.eager else self.random.randint(1, left)
            batch.append(Work(new_tokens, found))
            state.computed = found + new_tokens
            self._cached.update(state.prompt[: state.computed])
            if state.computed == len(state.prompt):
                self._waiting.remove(state)
                self._running.append(state)
                self._generate(state, ended)
        return batch

    def _decode(self, ended: list[_State]) -> list[Work]:
        batch = []
        held: set[Prefix] = set()
        generated = 0
        for state in self._chosen(self._running)[: self.max_running_requests]:
            together = held.union(state.prompt)
            if len(together) + generated + state.generated > self.pool_tokens:
                continue
            held, generated = together, generated + state.generated
            batch.append(Work(1, len(state.prompt) + state.generated - 1))
            self._generate(state, ended)
        return batch

    def _generate(self, state: _State, ended: list[_State]) -> None:
        state.generated += 1
        text = (*state.request.prompt, *state.request.output)
        self._cached.add(list(_prefixes(text))[len(state.prompt) + state.generated - 1])
        if state.generated == state.request.output_length:
            self._running.remove(state)
            ended.append(state)

    def _chosen(self, states: Sequence[_State]) -> list[_State]:
        ordered = sorted(states, key=lambda state: self._rank[state.request.group])
        ordered = ordered[: self.at_once]
        if self.random.random() < self.eager:
            return ordered
        return ordered[: self.random.randint(1, len(ordered))]


def _prefixes(spans: Sequence[Span]) -> Iterator[Prefix]:
    prefix: Prefix = ()
    for segment, start, length in spans:
        for offset in range(start, start + length):
            prefix = (*prefix, (segment, offset))
            yield prefix
