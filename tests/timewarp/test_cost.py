"""The cost model against figures it was built to give, with their sources."""

import math

import pytest

from benchmarks.replay_run import QWEN_14B
from tokencake_sglang.timewarp.clock import VirtualClock, VirtualEvent, VirtualStream
from tokencake_sglang.timewarp.cost import CostModel, Work
from tokencake_sglang.timewarp.hardware import load_hardware_profile, profiles
from tokencake_sglang.timewarp.models import model_profile

MODEL = model_profile(QWEN_14B, "Qwen2.5-14B")


def cost(hardware: str) -> CostModel:
    return CostModel(MODEL, load_hardware_profile(hardware))


def test_kv_bytes_of_qwen_14b():
    assert MODEL.kv_bytes_per_token == 196_608  # 2 x 48 layers x 8 heads x 128 x 2 bytes


@pytest.mark.parametrize(("hardware", "tokens_per_s"), [("a800", 7_400), ("h200", 22_000)])
def test_prefill_speed_is_the_published_one(hardware, tokens_per_s):
    speed = 4096 / cost(hardware).forward_s([Work(4096, 0)])
    assert math.isclose(speed, tokens_per_s, rel_tol=0.05)


def test_a_decode_step_on_an_a800_reads_the_weights_once():
    assert math.isclose(cost("a800").forward_s([Work(1, 100)]), 0.0175, rel_tol=0.05)


def test_attention_makes_late_tokens_dearer():
    model = cost("a800")
    assert model.forward_s([Work(4096, 60_000)]) > 1.5 * model.forward_s([Work(4096, 0)])


def test_a_batch_is_cheaper_than_its_requests_one_by_one():
    model = cost("a800")
    batch = [Work(1, 2000)] * 16
    assert model.forward_s(batch) < 0.2 * sum(model.forward_s([work]) for work in batch)


def test_a_copy_is_bandwidth_and_latency():
    assert math.isclose(cost("a800").load_s(10_000), 0.07898, rel_tol=1e-3)
    assert cost("a800").load_s(0) == 0.0


def test_an_expert_that_no_token_was_routed_to_is_not_read():
    config = {**QWEN_14B, "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 512}
    model = model_profile(config, "moe")
    one, many = model.weight_bytes_read(1), model.weight_bytes_read(1000)
    experts = 64 * model.expert_weight_bytes
    assert math.isclose(many - one, experts * (1 - 8 / 64), rel_tol=1e-6)


def test_every_profile_loads_and_says_where_its_numbers_come_from():
    for name in profiles():
        assert load_hardware_profile(name).sources


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(ValueError, match="no profile 'b300'; there are a800, h100"):
        load_hardware_profile("b300")


def test_a_stream_runs_one_piece_after_the_other():
    clock = VirtualClock()
    stream = VirtualStream(clock)
    assert stream.submit(2.0) == (0.0, 2.0)
    assert stream.submit(1.0) == (2.0, 3.0)
    clock.advance_to(10.0)
    assert stream.submit(1.0, not_before_s=11.0) == (11.0, 12.0)


def test_waiting_for_an_event_takes_time():
    clock = VirtualClock()
    event = VirtualEvent(clock, done_s=3.0)
    assert not event.query()
    event.synchronize()
    assert event.query() and clock.now_s == 3.0
