"""Short prompts beside one in chunks of 512, on a real scheduler with a pool of 2,048 tokens."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from sglang.srt.managers.schedule_policy import CacheAwarePolicy

from tests.engine.preemption import run_short_beside_long
from tests.engine.scenarios import PAGE_SIZE, prompt
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.engine import prefill_share

LONG = AgentTag(agent="long", application="app")
SHORT = AgentTag(agent="short", application="app")


@pytest.fixture
def chunked(harness) -> str:
    """A prompt of three chunks, of which the first is done."""
    long = harness.submit(prompt(1, 1500), 4, LONG)
    harness.step()
    assert harness.scheduler.chunked_req is not None
    return long


def admitted(harness) -> set[str]:
    scheduler = harness.scheduler
    batches = (scheduler.running_batch, scheduler.last_batch)
    return {req.rid for batch in batches if batch is not None for req in batch.reqs}


def test_a_short_prompt_does_not_wait_until_a_long_one_is_done(harness, chunked):
    short = harness.submit(prompt(2, 100), 4, SHORT)
    harness.step()
    assert harness.scheduler.chunked_req is not None
    assert short in admitted(harness)
    harness.run(chunked, short)


def test_without_the_part_it_waits(harness, chunked, monkeypatch):
    monkeypatch.setattr(prefill_share, "shared_tokens", lambda *_, **__: 0)
    short = harness.submit(prompt(2, 100), 4, SHORT)
    harness.step()
    assert short not in admitted(harness)
    harness.run(chunked, short)


def test_an_untagged_prompt_waits_as_ever(harness, chunked):
    short = harness.submit(prompt(2, 100), 4)
    harness.step()
    assert short not in admitted(harness)
    harness.run(chunked, short)


def test_one_of_a_newcomer_gets_nothing(harness, chunked, monkeypatch):
    """What waits outside the working set would take a step's part and not be admitted."""
    monkeypatch.setattr(harness.planner.applications.working_set, "device_tokens", 1500)
    newcomer = harness.submit(prompt(2, 100), 4, AgentTag(agent="n", application="new"))
    harness.step()
    assert newcomer not in admitted(harness)
    assert harness.scheduler.chunked_req.extend_end == 1024
    harness.run(chunked, newcomer)


def test_one_that_does_not_fit_a_steps_part_waits(harness, chunked):
    large = harness.submit(prompt(2, 300), 4, SHORT)
    harness.step()
    assert large not in admitted(harness)
    assert harness.scheduler.chunked_req.extend_end == 1024
    harness.run(chunked, large)


def test_there_is_never_a_second_prompt_in_chunks(harness, chunked):
    """SGLang keeps track of one: what does not fit into the part is passed over."""
    large = harness.submit(prompt(2, 300), 4, AgentTag(agent="large", application="app"))
    short = harness.submit(prompt(3, 100), 4, SHORT)
    harness.step()
    assert short in admitted(harness)
    assert large not in admitted(harness)
    harness.run(chunked, large, short)


def test_the_long_ones_rest_is_kept_free(harness, chunked):
    """SGLang takes it for granted. What waits ahead of the short one, untagged, would take it."""
    greedy = harness.submit(prompt(2, 100), 900)
    short = harness.submit(prompt(3, 100), 4, SHORT)
    harness.step()
    chunk = harness.scheduler.chunked_req
    assert chunk is not None
    assert chunk.extend_end < 1024, "nothing was left to others, which this test is about"
    assert greedy not in admitted(harness)
    harness.run(chunked, greedy, short)


@pytest.mark.parametrize(("others", "left_tokens"), [(14, 100), (15, 0)])
def test_nothing_is_left_where_nobody_more_can_run(harness, others, left_tokens):
    """At most 16 requests run; the long one is among them."""
    running = [
        harness.submit(prompt(100 + number, 5), 30, AgentTag(agent=f"o{number}", application="app"))
        for number in range(others)
    ]
    harness.step(2)
    long = harness.submit(prompt(1, 1100), 4, LONG)
    harness.step()
    short = harness.submit(prompt(2, 100), 4, SHORT)
    harness.step()
    left_tokens = -(-left_tokens // PAGE_SIZE) * PAGE_SIZE
    assert harness.scheduler.chunked_req.extend_end == 1024 - left_tokens
    harness.run(long, short, *running)


def test_chunks_end_where_they_must(harness, chunked, monkeypatch):
    """For deterministic inference SGLang prefills in multiples of a size."""
    monkeypatch.setattr(harness.planner, "aligns_chunks", True)
    short = harness.submit(prompt(2, 100), 4, SHORT)
    harness.step()
    assert harness.scheduler.chunked_req.extend_end == 1024
    harness.run(chunked, short)


def test_the_rest_is_kept_free_where_sglang_leaves_a_part_to_others(harness, chunked, monkeypatch):
    """It then admits whatever fits beside the chunk, and came to "Prefill out of memory"."""
    policy = harness.scheduler.policy
    monkeypatch.setattr(policy, "policy", CacheAwarePolicy.SHORTEST_PREFILL_FIRST)
    others = [harness.submit(prompt(20 + number, 200), 4) for number in range(6)]
    harness.run(chunked, *others)


@pytest.mark.slow
def test_one_of_lower_priority_waits(tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        ends = pool.submit(run_short_beside_long, tmp_path).result(timeout=300)
    assert ends == [1024, 924, 924]


@pytest.mark.parametrize("tokens", [700, 1500])
def test_answers_are_the_same_beside_others_and_alone(harness, tokens):
    seeds = (2, 3)
    alone = [harness.generate(prompt(1, tokens), 6, LONG)]
    alone += [harness.generate(prompt(seed, 100), 6, SHORT) for seed in seeds]
    harness.start_over()
    long = harness.submit(prompt(1, tokens), 6, LONG)
    harness.step()
    short = [harness.submit(prompt(seed, 100), 6, SHORT) for seed in seeds]
    assert harness.run(long, *short) == alone
