"""Room for answers in admission, on a real scheduler with a pool of 2,048 tokens."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.engine.mixed_chunks import run_long_prompt_beside_long_answers
from tests.engine.scenarios import prompt
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.spatial.lengths import FEWEST

DECLARED_TOKENS = 1500
ANSWER_TOKENS = 6


def of(agent_type: str, agent: str) -> AgentTag:
    return AgentTag(agent=agent, application="app", agent_type=agent_type)


def ask(
    harness,
    seed: int,
    tag: AgentTag | None,
    stop_at: int | None = None,
    declared: int = DECLARED_TOKENS,
    prompt_tokens: int = 100,
) -> str:
    """A request that may take all that it declares, unless it comes to the token ``stop_at``."""
    rid = harness.submit(prompt(seed, prompt_tokens), declared, tag)
    params = harness._inbox[-1].sampling_params
    params.ignore_eos = False
    params.stop_token_ids = None if stop_at is None else {stop_at}
    return rid


@pytest.fixture
def brief(harness):
    """A server that has seen eight answers of a few tokens from coders."""
    answer = harness.generate(prompt(1, 100), ANSWER_TOKENS)
    for number in range(FEWEST):
        rid = ask(harness, 1, of("coder", f"a{number}"), stop_at=answer[-1])
        (output,) = harness.run(rid)
        assert len(output) <= ANSWER_TOKENS
    return harness


def running(harness) -> set[str]:
    return {req.rid for req in harness.scheduler.running_batch.reqs}


def both_at_once(harness, tag_of) -> bool:
    rids = [ask(harness, seed, tag_of(seed)) for seed in (2, 3)]
    harness.step(4)
    together = running(harness) == set(rids)
    for rid in rids:
        harness.abort(rid)
    harness.step(3)
    return together


def test_answers_known_to_be_short_run_side_by_side(brief):
    assert both_at_once(brief, lambda seed: of("coder", f"b{seed}"))


def test_a_prompt_of_several_chunks_leaves_others_their_room(brief):
    """The declared limit is charged with the last chunk, in another call than the first's."""
    rids = [
        ask(brief, seed, of("coder", f"e{seed}"), prompt_tokens=tokens)
        for seed, tokens in ((4, 700), (5, 100))
    ]
    brief.step(3)  # two chunks; then both decode
    assert running(brief) == set(rids)
    for rid in rids:
        brief.abort(rid)
    brief.step(3)


@pytest.mark.parametrize("tag_of", [lambda seed: of("writer", f"w{seed}"), lambda _seed: None])
def test_of_others_the_declared_limit_counts(brief, tag_of):
    assert not both_at_once(brief, tag_of)


def test_the_limit_itself_stays_as_it_was_declared(brief):
    """A prediction is no promise: the answer goes on to its limit."""
    rid = ask(brief, 2, of("coder", "long"))
    (output,) = brief.run(rid)
    assert len(output) == DECLARED_TOKENS


def test_when_predictions_fail_answers_are_the_same(brief):
    """Two answers that were taken for short do not fit together: one is retracted, none is lost."""
    half = 1100
    ((first,), (second,)) = [
        brief.run(ask(brief, seed, of("writer", f"c{seed}"), declared=half)) for seed in (2, 3)
    ]
    rids = [ask(brief, seed, of("coder", f"d{seed}"), declared=half) for seed in (2, 3)]
    before = brief.retractions
    assert brief.run(*rids, limit=4000) == [first, second]
    assert brief.retractions > before


def test_a_retracted_request_holds_nothing_and_waits(brief):
    half = 1100
    rids = [ask(brief, seed, of("coder", f"f{seed}"), declared=half) for seed in (2, 3)]
    brief.step(5)
    for _ in range(2 * half):
        if brief.scheduler.waiting_queue:
            break
        brief.step()
    (retracted,) = brief.scheduler.waiting_queue
    assert retracted.retraction_count == 1
    brief.submit(prompt(6, 50), 2, of("coder", "third"))  # the application is looked at
    brief.step()
    member = brief.planner.applications.working_set.members["app"]
    (left,) = running(brief)
    tokens = next(
        len(req.origin_input_ids) + len(req.output_ids)
        for req in brief.scheduler.running_batch.reqs
        if req.rid == left
    )
    assert abs(member.running_tokens - tokens) <= 60
    assert member.waits
    brief.run(*rids, limit=4000)


def test_aborted_answers_teach_nothing(harness):
    for number in range(FEWEST):
        rid = ask(harness, number, of("aborted", f"a{number}"))
        harness.step(3)
        harness.abort(rid)
        harness.step(2)
    assert harness.planner.headroom.lengths.tokens_left("aborted", 0) is None


@pytest.mark.slow
def test_longer_answers_do_not_take_what_a_prompt_in_chunks_was_promised(tmp_path):
    """Where SGLang decodes beside it; the scheduler ended."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        ended = pool.submit(run_long_prompt_beside_long_answers, tmp_path).result(timeout=300)
    assert ended == 15
