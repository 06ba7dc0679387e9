"""A policy that does one thing to every agent that stops at a call, and what came of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.replay.builders import HEADER
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call
from tokencake_sglang.engine.scheduler_hooks import planner_of
from tokencake_sglang.policy import (
    Cached,
    CachedTokens,
    Decision,
    Discard,
    EvictionCandidate,
    Keep,
    Policy,
    Release,
    Request,
    Upload,
    View,
)
from tokencake_sglang.replay.driver import Replay
from tokencake_sglang.replay.figures import figures
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Request as Recorded
from tokencake_sglang.replay.workload import ToolCall, Workload
from tokencake_sglang.timewarp.cost import CostModel
from tokencake_sglang.timewarp.engine import TimeWarp
from tokencake_sglang.timewarp.hardware import load_hardware_profile
from tokencake_sglang.timewarp.models import load_model_profile


def _now(cached: Cached) -> CachedTokens:
    """What is asked of a path is looked up at that moment; this is how it was."""
    return CachedTokens(
        cached.tokens - cached.host_only_tokens,
        cached.host_only_tokens,
        cached.releasable_tokens,
        cached.exclusive_tokens,
        cached.uncopied_tokens,
    )


@dataclass
class Stopped(Policy):
    """Sees every agent in its call once the call is two seconds old."""

    stalled: dict[AgentKey, float] = field(default_factory=dict)
    before: list[CachedTokens] = field(default_factory=list)
    after: list[CachedTokens] = field(default_factory=list)

    def call_started(self, agent: Agent, call: Call, now_s: float) -> None:
        self.stalled[agent.key] = now_s

    def decide(self, view: View) -> Iterable[Decision]:
        for key, since_s in list(self.stalled.items()):
            if view.now_s > since_s + 2.0:
                del self.stalled[key]
                self.before.append(_now(view.cached(key)))
                yield self.action(key)
                self.after.append(_now(view.cached(key)))

    def action(self, key: AgentKey) -> Decision:
        raise NotImplementedError


class Releasing(Stopped):
    def action(self, key: AgentKey) -> Decision:
        return Release(key, "test")


class Discarding(Stopped):
    automatic_backup = False

    def action(self, key: AgentKey) -> Decision:
        return Discard(key, "test")


class Keeping(Stopped):
    def action(self, key: AgentKey) -> Decision:
        return Keep(key, "test")


@dataclass
class Uploading(Releasing):
    """Releases after two seconds and wants everything back from then on."""

    gone: list[AgentKey] = field(default_factory=list)

    def decide(self, view: View) -> Iterable[Decision]:
        yield from super().decide(view)
        for key in self.gone:
            yield Upload(key, "test")

    def action(self, key: AgentKey) -> Decision:
        self.gone.append(key)
        return super().action(key)


class Nothing(Policy):
    pass


class NewestFirst(Policy):
    def order(self, view: View) -> Sequence[int]:
        return list(reversed(range(len(view.queue))))


class OneAtATime(Policy):
    def admits(self, request: Request, view: View) -> bool:
        return False


class LastUsedFirst(Policy):
    orders_eviction = True

    def eviction_rank(self, node: EvictionCandidate) -> tuple[float, ...]:
        return (-node.last_access,)


def two_turns(
    prompt_tokens: int = 2000, wait_s: float = 10.0, others: int = 0, every_s: float = 0.0
) -> Workload:
    """An agent that stops at a call between two turns; ``others`` want the pool meanwhile."""
    first = (Span("app/context", 0, prompt_tokens),)
    output = (Span("app/first", 0, 48),)
    requests = [
        Recorded(
            request_id="first",
            application="app",
            agent="agent",
            arrival_s=0.0,
            prompt=first,
            output=output,
            call=ToolCall(tool="tests", wait_s=wait_s),
        ),
        Recorded(
            request_id="second",
            application="app",
            agent="agent",
            wait_for=("first",),
            prompt=(*first, *output, Span("app/result", 0, 200)),
            output=(Span("app/second", 0, 16),),
        ),
    ]
    requests += [
        Recorded(
            request_id=f"other-{number}",
            arrival_s=5.0 + number * every_s,
            prompt=(Span(f"other-{number}", 0, 2000),),
            output=(Span(f"other-{number}/output", 0, 16),),
        )
        for number in range(others)
    ]
    return Workload(HEADER, requests)


def run(policy: str | None, workload: Workload, pool_tokens: int = 4096) -> dict:
    """One replay under one of the policies above; in a process of its own."""
    flags = () if policy is None else ("--tokencake-policy", f"tests.replay.scripted:{policy}")
    warp = TimeWarp(
        CostModel(load_model_profile("qwen2.5-14b"), load_hardware_profile("a800")),
        pool_tokens=pool_tokens,
        host_tokens=8 * pool_tokens,
        flags=("--enable-tokencake", *flags) if policy is not None else (),
    )
    replay = Replay(workload, warp)
    replay.run()
    seen = {"figures": figures(replay), "requests": warp.requests, "policy": None, "log": {}}
    if policy is not None:
        planner = planner_of(warp.scheduler)
        seen["policy"] = {
            "before": getattr(planner.policy, "before", None),
            "after": getattr(planner.policy, "after", None),
        }
        seen["log"] = dict(planner.log.counts)
    for request in warp.requests.values():
        request.on_finish = None  # not to be pickled
    return seen
