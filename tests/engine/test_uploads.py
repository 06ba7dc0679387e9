"""Uploads ahead of a return, in pieces, and holds, on a real scheduler."""

from tests.engine.scenarios import (
    AGENT,
    PATH_TOKENS,
    fill_pool,
    finish_calls,
    prompt,
    stalled_agent,
    tiers,
)
from tokencake_sglang.engine.residents import Residence


def test_it_is_back_and_held_before_the_predicted_end(harness):
    stalled_agent(harness, predicted_s=10.0)
    fill_pool(harness)
    harness.at(harness.now_s + 9.0)
    harness.step(8)
    assert tiers(harness, AGENT)[0] == 0, "uploaded long before its time"
    harness.at(harness.now_s + 0.85)
    harness.step(12)
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)
    assert harness.planner.residents[AGENT.key].residence is Residence.HELD


def test_uploads_go_in_bounded_pieces(harness):
    stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    pieces = [d.tokens for d in harness.planner.log.recent if d.action == "upload"]
    assert len(pieces) > 1
    assert max(pieces) <= 256
    assert sum(pieces) == PATH_TOKENS


def test_a_held_prefix_survives_pressure_until_its_request_comes(harness):
    context = stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    fill_pool(harness, seed=2000)
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)
    finish_calls(harness, AGENT)
    rid = harness.submit(context + [7] * 40, 4, AGENT)
    harness.run(rid)
    assert harness.cached_tokens[rid] == PATH_TOKENS
    assert harness.decisions("return") == [("coder", "uploaded_in_time")]
    assert harness.decisions("unhold") == [("coder", "admitted")]


def test_nothing_is_uploaded_while_others_wait_for_memory(harness):
    stalled_agent(harness)
    fill_pool(harness)
    running = harness.submit(prompt(98, 1000), 60)
    waiting = harness.submit(prompt(99, 1500), 4)
    harness.step(3)
    harness.at(harness.now_s + 9.9)
    harness.step(4)
    assert [req.rid for req in harness.scheduler.waiting_queue] == [waiting]
    assert harness.decisions("upload") == []
    harness.run(running, waiting)


def test_an_upload_leaves_the_memory_that_a_chunked_prompt_was_promised(harness):
    """SGLang takes a prompt's later chunks for granted: it dies if their slots are gone."""
    stalled_agent(harness)
    fill_pool(harness)
    long = harness.submit(prompt(97, 1900), 4)
    harness.step()  # the first chunk of 512
    assert harness.scheduler.chunked_req is not None
    harness.at(harness.now_s + 9.9)
    harness.run(long)
    assert harness.decisions("upload"), "no upload was tried meanwhile"


def test_a_hold_lapses_when_nobody_comes(harness):
    stalled_agent(harness)
    fill_pool(harness)
    harness.at(harness.now_s + 9.9)
    harness.step(12)
    harness.at(harness.now_s + 30.0)
    harness.step(2)
    assert harness.decisions("unhold") == [("coder", "overdue")]
    assert harness.planner.temporal.snapshot()["held"] == 0


def test_an_early_finish_uploads_at_once(harness):
    stalled_agent(harness, predicted_s=300.0)
    fill_pool(harness)
    harness.now_s += 1.0
    finish_calls(harness, AGENT)
    harness.step(12)
    assert tiers(harness, AGENT) == (PATH_TOKENS, 0)
    assert set(harness.decisions("upload")) == {("coder", "call_finished")}


def test_an_upload_leaves_enough_beside_the_prefix_that_it_locks(harness):
    """A load locks its whole path: what was evictable above the missing part is no longer."""
    shared = prompt(1)
    harness.generate(shared + prompt(2, 300), 16, AGENT)
    harness.generate(shared + prompt(3, 300), 16)
    harness.settle()
    leaf_id = harness.planner.residents[AGENT.key].leaf_id
    missing = harness.cache.release(leaf_id)
    held = harness.cache.unlocked_tokens(leaf_id)
    assert missing >= 300 and held >= 600 - harness.cache.page_size
    allocator = harness.cache.token_to_kv_pool_allocator
    free = allocator.available_size() + harness.cache.full_evictable_size()
    assert harness.cache.upload(leaf_id, 512, keep_free_tokens=free - missing) == 0
    assert harness.cache.upload(leaf_id, 512, keep_free_tokens=free - missing - held) == missing
    assert allocator.available_size() + harness.cache.full_evictable_size() >= free - missing - held
    harness.settle()
