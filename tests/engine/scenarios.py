"""Steps that several engine tests share."""

import os
import random

from tests.scheduler_harness import SchedulerHarness
from tokencake_sglang.agents.events import CallFinish, CallStart
from tokencake_sglang.agents.identity import AgentTag

PAGE_SIZE = int(os.environ.get("TOKENCAKE_TEST_PAGE_SIZE", "1"))
"""Of the one scheduler that this process can hold, in tokens; see test_page_size.py."""

PROMPT_TOKENS = 600
PATH_TOKENS = (PROMPT_TOKENS + 15) // PAGE_SIZE * PAGE_SIZE
"""Tokens in the tree after a turn of 16, in whole pages: the last one's KV is never computed."""

AGENT = AgentTag(agent="coder", application="app")


def prompt(seed: int, tokens: int = PROMPT_TOKENS) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 1000) for _ in range(tokens)]


def start_call(
    harness: SchedulerHarness, tag: AgentTag, predicted_s: float | None, call_id: str | None = None
) -> None:
    harness.send(
        CallStart(
            agent=tag.agent,
            application=tag.application,
            call_id=call_id or f"call-{harness.now_s}",
            tool="tests",
            predicted_s=predicted_s,
        )
    )
    harness.step()


def finish_calls(harness: SchedulerHarness, tag: AgentTag) -> None:
    for call in harness.planner.table.get(tag.key).calls:
        harness.send(CallFinish(agent=tag.agent, application=tag.application, call_id=call.call_id))


def fill_pool(harness: SchedulerHarness, seed: int = 1000, requests: int = 3) -> None:
    """Untagged traffic that needs the whole pool."""
    harness.run(*(harness.submit(prompt(seed + i, 900), 4) for i in range(requests)))


def tiers(harness: SchedulerHarness, tag: AgentTag) -> tuple[int, int]:
    """The agent's tokens on the device, and on the host only."""
    return harness.cache.tokens_by_tier(harness.planner.residents[tag.key].leaf_id)


def stalled_agent(harness: SchedulerHarness, predicted_s: float = 10.0) -> list[int]:
    """One turn of the agent, then a tool call; returns the context so far."""
    ids = prompt(1)
    context = ids + harness.generate(ids, 16, AGENT)
    start_call(harness, AGENT, predicted_s)
    return context
