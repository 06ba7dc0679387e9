"""A view made by hand, for worked examples of what a policy decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call
from tokencake_sglang.policy import NOTHING_CACHED, Cached, CachedTokens, Machine, Request

MACHINE = Machine(
    pool_tokens=48_800, host_tokens=488_000, page_size=16, link_tokens_per_s=127_000.0
)


@dataclass
class FixedView:
    """Shows what a test says."""

    now_s: float = 0.0
    machine: Machine = MACHINE
    free_tokens: int = 0
    evictable_tokens: int = 0
    queue: Sequence[Request] = ()
    running: Sequence[Request] = ()
    left_waiting: bool = False
    tokens: Mapping[AgentKey, Cached] = field(default_factory=dict)
    kept: set[AgentKey] = field(default_factory=set)
    uploading: set[AgentKey] = field(default_factory=set)

    def cached(self, key: AgentKey) -> Cached:
        return self.tokens.get(key, NOTHING_CACHED)

    def is_kept(self, key: AgentKey) -> bool:
        return key in self.kept

    def is_uploading(self, key: AgentKey) -> bool:
        return key in self.uploading


def on_device(tokens: int) -> Cached:
    """A path wholly on the device, exclusive, with a finished host copy."""
    return CachedTokens(tokens, 0, tokens, tokens)


def agent(
    name: str, application: str = "app", *, order: int = 0, kind: str = "default", critical=False
) -> Agent:
    return Agent(
        key=AgentKey(application, name),
        agent_type=kind,
        node=None,
        critical=critical,
        tenant=None,
        seen_order=order,
        application_order=order,
        last_event_s=0.0,
    )


def call(tool: str = "search", *, started_s: float = 0.0, predicted_s: float | None = None) -> Call:
    return Call("call", tool, started_s, predicted_s, None, started_s + 600.0)


def request(
    rid: str, of: Agent | None = None, *, queued_s: float = 0.0, tokens: int = 1000, output=100
) -> Request:
    return Request(rid, of, queued_s, tokens, output, tokens)
