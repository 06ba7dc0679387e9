"""Runs on a scheduler that decodes beside prompts in chunks, for a process of their own."""

from pathlib import Path

from tests.engine.scenarios import prompt
from tests.scheduler_harness import SchedulerHarness
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.spatial.lengths import FEWEST

FLAGS = ("--enable-tokencake", "--enable-mixed-chunk", "--chunked-prefill-size", "64")


def of(agent: str) -> AgentTag:
    return AgentTag(agent=agent, application="app", agent_type="coder")


def ask(harness: SchedulerHarness, seed: int, prompt_tokens: int, answer_tokens: int) -> str:
    rid = harness.submit(prompt(seed, prompt_tokens), answer_tokens, of(f"agent-{seed}"))
    harness._inbox[-1].sampling_params.ignore_eos = False
    return rid


def run_long_prompt_beside_long_answers(directory: Path) -> int:
    """Answers that are taken for short go on beside a prompt in chunks that needs nearly all memory.

    Returns:
        How many of the requests have ended.
    """
    harness = SchedulerHarness(directory, *FLAGS, kv_tokens=2048)
    harness.run(*(ask(harness, seed, 4, 5) for seed in range(FEWEST)))
    answers = [ask(harness, 20 + number, 4, 400) for number in range(14)]
    harness.step(2)
    long = harness.submit(prompt(1, 1800), 4, AgentTag(agent="long", application="app"))
    return len(harness.run(*answers, long, limit=8000))
