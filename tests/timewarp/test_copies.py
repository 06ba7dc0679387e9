"""Copies on virtual streams: when they run, who waits, and what is counted."""

import pytest

from tokencake_sglang.timewarp.clock import VirtualClock, VirtualStream
from tokencake_sglang.timewarp.cost import CostModel
from tokencake_sglang.timewarp.hardware import load_hardware_profile
from tokencake_sglang.timewarp.models import load_model_profile

COST = CostModel(load_model_profile("qwen2.5-14b"), load_hardware_profile("a800"))
TOKENS = 10_000
LOAD_S, BACKUP_S = COST.load_s(TOKENS), COST.backup_s(TOKENS)
TOKEN_BYTES = COST.model.kv_bytes_per_token


class Counter:
    """As SGLang's LayerDoneCounter: three places for loads."""

    num_counters = 3
    events: list


class Controller:
    def __init__(self) -> None:
        self.layer_done_counter = Counter()


class Indices:
    """As SGLang's L2Transfer."""

    def __init__(self, tokens: int) -> None:
        self.host_indices = range(tokens)


class Copies:
    """VirtualTransfers with the part that SGLang plays."""

    def __init__(self) -> None:
        from tokencake_sglang.timewarp.streams import VirtualTransfers

        self.clock = VirtualClock()
        self.forward = VirtualStream(self.clock)
        self.transfers = VirtualTransfers(self.clock, COST, self.forward)
        self.controller = Controller()
        self.transfers.attach(self.controller)

    def load(self, place: int = 0, tokens: int = TOKENS, *, fenced: bool = True):
        if fenced:
            self.transfers.host_to_device_stream.wait_stream(self.forward)
        loading = self.controller.layer_done_counter.events[place]
        return self.transfers.submit_host_to_device(
            [Indices(tokens)], transfer_layer_id_max=1, on_layer_done=loading.complete
        )

    def backup(self, tokens: int = TOKENS):
        self.transfers.device_to_host_stream.wait_stream(self.forward)
        return self.transfers.submit_device_to_host([Indices(tokens)])


@pytest.fixture
def copies() -> Copies:
    return Copies()


def test_copies_wait_for_the_forwards_submitted_before_them(copies):
    copies.forward.submit(2.0)
    load, backup = copies.load(), copies.backup()
    copies.forward.submit(5.0)  # later forwards overlap with them
    assert load.start_event.done_s == backup.start_event.done_s == 2.0


@pytest.mark.parametrize(("extends", "start_s"), [(False, 3.0), (True, 8.0)])
def test_a_load_that_sglang_does_not_fence_starts_with_the_decode_or_after_the_prefill(
    copies, extends, start_s
):
    """Its indices come from the scheduler's stream, which waits for a prefill and for no decode."""
    copies.forward.submit(3.0)
    copies.forward.submit(5.0)
    copies.transfers.launched(3.0, 8.0, extends=extends)
    assert copies.load(fenced=False).start_event.done_s == start_s
    assert copies.load(1).start_event.done_s >= 8.0  # a fence holds for one copy


def test_the_two_directions_do_not_slow_each_other_down(copies):
    load, backup = copies.load(), copies.backup()
    assert load.finish_event.done_s == pytest.approx(LOAD_S)
    assert backup.finish_event.done_s == pytest.approx(BACKUP_S)


def test_one_direction_copies_one_after_the_other(copies):
    copies.load(0)
    assert copies.load(1).start_event.done_s == pytest.approx(LOAD_S)


def test_a_load_that_a_forward_waits_for_is_late(copies):
    copies.load()
    end_s = copies.transfers.forward_end_s(0.0, 0.01, 0)
    layers = COST.model.layers
    assert end_s == pytest.approx(LOAD_S + 0.01 / layers)  # the copy is slower: the last layer
    assert copies.transfers.figures() == {
        "to_device_copies": 1,
        "to_device_late_copies": 1,
        "to_device_on_time_bytes": 0,
        "to_device_late_bytes": TOKENS * TOKEN_BYTES,
        "to_device_busy_s": pytest.approx(LOAD_S),
        "exposed_wait_s": pytest.approx(end_s - 0.01),
        "to_host_copies": 0,
        "to_host_bytes": 0,
        "to_host_busy_s": 0.0,
    }


def test_a_long_forward_waits_for_the_first_layer_only(copies):
    copies.load()
    end_s = copies.transfers.forward_end_s(0.0, 1.0, 0)
    assert end_s == pytest.approx(1.0 + LOAD_S / COST.model.layers)


def test_a_load_that_is_there_before_its_forward_is_on_time(copies):
    copies.load()
    copies.clock.advance_to(LOAD_S)
    assert copies.transfers.forward_end_s(LOAD_S, 0.3, 0) == LOAD_S + 0.3
    figures = copies.transfers.figures()
    assert figures["to_device_on_time_bytes"] == TOKENS * TOKEN_BYTES
    assert figures["to_device_late_copies"] == figures["exposed_wait_s"] == 0


def test_a_place_that_is_used_again_counts_its_new_load(copies):
    copies.load(0, tokens=100)
    copies.clock.advance_to(1.0)
    copies.transfers.forward_end_s(1.0, 0.01, 0)
    copies.load(0, tokens=200)
    copies.transfers.forward_end_s(1.0, 0.01, 0)
    assert [(copy.tokens, copy.late) for copy in copies.transfers.loads] == [
        (100, False),
        (200, True),
    ]


def test_backups_are_counted_in_bytes_and_seconds(copies):
    copies.backup(100)
    copies.backup(300)
    figures = copies.transfers.figures()
    assert figures["to_host_bytes"] == 400 * TOKEN_BYTES
    assert figures["to_host_busy_s"] == pytest.approx(COST.backup_s(100) + COST.backup_s(300))
    assert copies.transfers.backed_up_tokens == 400
