"""A load in flight is never read.

Copies on a CPU are synchronous, so the race of a GPU is made by hand: the bytes of a load arrive
only when somebody waits for them, as late as a copy stream possibly can.
"""

from collections.abc import Callable, Iterator

import pytest

from tests.engine.scenarios import (
    AGENT,
    PAGE_SIZE,
    PATH_TOKENS,
    fill_pool,
    finish_calls,
    prompt,
    stalled_agent,
    tiers,
)


class LateCopies:
    """Holds back host-to-device copies until their layer is waited for."""

    def __init__(self, harness, monkeypatch) -> None:
        from sglang.srt.mem_cache.pool_host import mha

        self.pending: list[Callable[[], None]] = []
        self.arrived = 0
        copy = mha.transfer_kv_direct
        device_layers = {id(t) for t in self._device_tensors(harness)}

        def late(src_layers, dst_layers, src_indices, dst_indices, page_size):
            if any(id(layer) in device_layers for layer in dst_layers):
                job = (list(src_layers), list(dst_layers), src_indices, dst_indices, page_size)
                self.pending.append(lambda: copy(*job))
                # What is on the device until then is somebody else's.
                for layer in dst_layers:
                    layer[dst_indices] = 1e3
            else:
                copy(src_layers, dst_layers, src_indices, dst_indices, page_size)

        monkeypatch.setattr(mha, "transfer_kv_direct", late)
        counter = harness.cache.cache_controller.layer_done_counter
        wait = type(counter).wait_until

        def wait_until(this, layer):
            if this.consumer_index >= 0:
                self.arrive()
            return wait(this, layer)

        monkeypatch.setattr(type(counter), "wait_until", wait_until)

    @staticmethod
    def _device_tensors(harness) -> list:
        pool = harness.scheduler.token_to_kv_pool_allocator.get_kvcache()
        return [*pool.k_buffer, *pool.v_buffer]

    def arrive(self) -> None:
        while self.pending:
            self.pending.pop(0)()
            self.arrived += 1


@pytest.fixture
def late_copies(harness, monkeypatch) -> Iterator[LateCopies]:
    copies = LateCopies(harness, monkeypatch)
    yield copies
    copies.arrive()


@pytest.fixture
def in_flight(harness, late_copies, monkeypatch):
    """The agent's prefix is on its way to the device; returns (context, expected tokens)."""
    ids = prompt(1)
    next_prompt = ids + harness.generate(ids, 16) + prompt(2, 40)
    expected = harness.generate(next_prompt, 48)
    harness.flush()
    assert stalled_agent(harness) == next_prompt[:-40]
    fill_pool(harness)
    harness.settle()
    assert tiers(harness, AGENT)[0] == 0
    leaf = harness.planner.residents[AGENT.key].leaf_id
    late_copies.arrive()
    # Loads stay in flight: their acknowledgements are held back.
    monkeypatch.setattr(harness.cache, "_count_ready_acks", lambda queue: 0)
    assert harness.cache.upload(leaf, 10_000) == PATH_TOKENS
    assert late_copies.pending
    return next_prompt, expected


def test_a_request_that_matches_a_load_in_flight_waits_for_it(harness, in_flight, monkeypatch):
    next_prompt, expected = in_flight
    finish_calls(harness, AGENT)
    rid = harness.submit(next_prompt, 48, AGENT)
    tokens = harness.run(rid)[0]
    monkeypatch.undo()
    assert harness.cached_tokens[rid] == PATH_TOKENS, "not exactly what is in flight was matched"
    assert tokens == expected


def test_another_request_that_shares_only_the_head_of_it_waits_too(
    harness, in_flight, late_copies, monkeypatch
):
    next_prompt, _ = in_flight
    head = next_prompt[:300] + prompt(3, 40)
    rid = harness.submit(head, 48)
    tokens = harness.run(rid)[0]
    assert late_copies.arrived > 0
    assert harness.cached_tokens[rid] == 300 // PAGE_SIZE * PAGE_SIZE
    monkeypatch.undo()
    late_copies.arrive()
    harness.flush()
    assert harness.generate(head, 48) == tokens


def test_a_request_that_shares_nothing_does_not_wait(harness, in_flight, late_copies):
    rid = harness.submit(prompt(4, 100), 4)
    harness.run(rid)
    assert late_copies.pending


def test_without_the_guard_the_tokens_are_wrong(harness, in_flight, monkeypatch):
    """The control: this arrangement does see the race."""
    next_prompt, expected = in_flight
    monkeypatch.setattr(harness.cache, "consumer_index_for", lambda reqs: -1)
    rid = harness.submit(next_prompt, 48)
    tokens = harness.run(rid)[0]
    monkeypatch.undo()
    assert tokens != expected
    harness.settle()
    harness.flush()
