"""The temporal policy: which idle prefixes leave the device, and when they start to come back.

It proposes; the engine applies and reports what came of it. A rival implements the same two
questions, so that a comparison swaps one object and nothing else.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tokencake_sglang.agents.identity import AgentKey


@dataclass(frozen=True, slots=True)
class Idle:
    """An agent that holds KV and has no request.

    ``return_s``: when its next request is expected, in seconds on the main process's clock;
    infinite for an agent that has finished. ``device_tokens``: what it alone keeps on the device
    and what has a host copy. ``seen_order`` breaks ties.
    """

    key: AgentKey
    return_s: float
    device_tokens: int
    seen_order: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give up the device slots of the agent's exclusive, host-backed path."""

    key: AgentKey
    reason: str


class TemporalPolicy(Protocol):
    def releases(
        self, now_s: float, shortage_tokens: int, idle: Iterable[Idle]
    ) -> Iterable[Release]:
        """Whom to release, in order; the engine stops once ``shortage_tokens`` are free.

        Called only while the waiting requests need more than what is free. Pinned agents and
        agents without a complete host copy are not among ``idle``.
        """

    def upload_start_s(self, return_s: float, host_tokens: int) -> float:
        """When the upload of ``host_tokens`` must start for a return at ``return_s``."""


class FarthestReturnFirst:
    """The first version: release the dead, then whoever returns last, if the stall is worth it.

    A stall is worth a release when what remains of it exceeds the round trip of its KV over the
    link (TokenCake, arXiv 2510.18586, Algorithm 1: ``T_fc > T_transfer``). Uploads start early
    enough to end ``lead_s`` before the expected return.
    """

    def __init__(self, *, link_tokens_per_s: float, lead_s: float) -> None:
        self.link_tokens_per_s = link_tokens_per_s
        self.lead_s = lead_s

    def round_trip_s(self, tokens: int) -> float:
        return 2.0 * tokens / self.link_tokens_per_s

    def releases(
        self, now_s: float, shortage_tokens: int, idle: Iterable[Idle]
    ) -> Iterable[Release]:
        if shortage_tokens <= 0:
            return
        for agent in sorted(idle, key=lambda agent: (-agent.return_s, agent.seen_order)):
            if agent.device_tokens == 0:
                continue
            if math.isinf(agent.return_s):
                yield Release(agent.key, "finished")
                continue
            needed_s = self.round_trip_s(agent.device_tokens) + self.lead_s
            if agent.return_s - now_s > needed_s:
                yield Release(agent.key, "stall_exceeds_round_trip")

    def upload_start_s(self, return_s: float, host_tokens: int) -> float:
        return return_s - host_tokens / self.link_tokens_per_s - self.lead_s
