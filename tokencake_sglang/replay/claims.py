"""Which cached tokens somebody will come back for, and how soon.

A *claim* is a sequence of tokens and how much of it, from its beginning, is wanted soon and
wanted at all. Two kinds of work claim: a request that is queued claims its prompt, now; a request
that has ended holds KV for its successors in the workload, each of which claims what its prompt
has in common with that request's prompt and output.

Not claimed: what only a request further ahead wants, one none of whose predecessors has been
sent yet, and what a request of an application that has not arrived wants.
"""

import itertools
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

from tokencake_sglang.replay.progress import Progress
from tokencake_sglang.replay.tokens import common_prefix
from tokencake_sglang.replay.workload import Request, Workload

SOON_S = 5.0
"""A request that is sent within this time claims its prefix soon."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``tokens`` of the prompt and output of ``request_id`` are wanted, ``soon_tokens`` soon."""

    request_id: str
    soon_tokens: int
    tokens: int


class Claims:
    """Follows one run of a workload.

    Args:
        sent: the requests sent so far, by id and in that order; it grows while the run goes on.
        finished_s: when a request ended, by its id; None while it has not.
    """

    def __init__(
        self,
        workload: Workload,
        sent: dict[str, Any],
        finished_s: Callable[[str], float | None],
    ) -> None:
        self._by_id = workload.by_id
        self._progress = Progress(workload, finished_s)
        self._finished_s = finished_s
        self._sent = sent
        self._seen: set[str] = set()
        self._open: list[str] = []
        self._holding: dict[str, dict[str, int]] = {}
        self._successors: dict[str, list[str]] = {}
        self._roots = sorted(
            (request for request in workload.requests if request.is_root),
            key=lambda root: -(self._progress.dispatch_s(root) or 0.0),
        )
        for request in workload.requests:
            for name in _predecessors(request):
                self._successors.setdefault(name, []).append(request.request_id)

    def at(self, now_s: float, running: Container[str]) -> Iterator[Claim]:
        """The claims of all but running requests, which hold what their successors will want."""
        self._follow()
        self._open = [name for name in self._open if self._finished_s(name) is None]
        soon_s = now_s + SOON_S
        for name in self._open:
            if name not in running:
                tokens = self._by_id[name].prompt_length
                yield Claim(name, tokens, tokens)
        for root in self._arriving(soon_s):
            yield Claim(root.request_id, root.prompt_length, root.prompt_length)
        for holder, successors in self._holding.items():
            if self._finished_s(holder) is None:
                continue
            soon = [tokens for name, tokens in successors.items() if self._is_due(name, soon_s)]
            yield Claim(holder, max(soon, default=0), max(successors.values()))

    def _is_due(self, name: str, until_s: float) -> bool:
        due_s = self._progress.dispatch_s(self._by_id[name])
        return due_s is not None and due_s <= until_s

    def _arriving(self, until_s: float) -> Iterator[Request]:
        while self._roots and self._roots[-1].request_id in self._seen:
            self._roots.pop()
        for root in reversed(self._roots):
            if not self._is_due(root.request_id, until_s):
                return
            if root.request_id not in self._seen:
                yield root

    def _follow(self) -> None:
        """Takes note of the requests sent since the last call."""
        sent = list(itertools.takewhile(lambda n: n not in self._seen, reversed(self._sent)))
        self._seen.update(sent)
        self._open += reversed(sent)
        for name in reversed(sent):
            shared = {
                successor: self._shared(name, successor)
                for successor in self._successors.get(name, ())
                if successor not in self._seen
            }
            if shared:
                self._holding[name] = shared
            for holder in _predecessors(self._by_id[name]):
                waiting = self._holding.get(holder, {})
                waiting.pop(name, None)
                if not waiting:
                    self._holding.pop(holder, None)

    def _shared(self, holder: str, successor: str) -> int:
        held = self._by_id[holder]
        return common_prefix((*held.prompt, *held.output), self._by_id[successor].prompt)


def _predecessors(request: Request) -> Iterator[str]:
    yield from request.wait_for
    if request.spawned_by is not None:
        yield request.spawned_by
