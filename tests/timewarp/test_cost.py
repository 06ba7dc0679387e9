"""The cost model against figures it was built to give, with their sources."""

import json
import math
from dataclasses import replace

import pytest

from tokencake_sglang.timewarp.clock import VirtualClock, VirtualEvent, VirtualStream
from tokencake_sglang.timewarp.cost import CostModel, Work
from tokencake_sglang.timewarp.hardware import load_hardware_profile, profiles
from tokencake_sglang.timewarp.models import (
    config_of,
    load_model_profile,
    model_profile,
    models,
)

MODEL = load_model_profile("qwen2.5-14b")


def cost(hardware: str) -> CostModel:
    return CostModel(MODEL, load_hardware_profile(hardware))


@pytest.mark.parametrize(
    ("name", "billions", "active_billions", "kv_bytes"),
    [
        # Parameters as the model cards say; bytes: 2 x layers x KV heads x 128 x 2.
        ("qwen2.5-14b", 14.77, 14.77, 2 * 48 * 8 * 128 * 2),
        ("qwen2.5-32b", 32.76, 32.76, 2 * 64 * 8 * 128 * 2),
        ("llama-3.1-8b", 8.03, 8.03, 2 * 32 * 8 * 128 * 2),
        ("qwen3-30b-a3b", 30.53, 3.35, 2 * 48 * 4 * 128 * 2),
    ],
)
def test_sizes_of_the_built_in_models(name, billions, active_billions, kv_bytes):
    model = load_model_profile(name)
    assert model.parameters / 1e9 == pytest.approx(billions, abs=0.01)
    assert model.active_parameters / 1e9 == pytest.approx(active_billions, abs=0.01)
    assert model.kv_bytes_per_token == kv_bytes


def test_every_built_in_model_has_its_sizes_tested():
    assert models() == ["llama-3.1-8b", "qwen2.5-14b", "qwen2.5-32b", "qwen3-30b-a3b"]


def test_a_forward_of_everything_reads_all_weights_but_the_embedding():
    for name in models():
        model = load_model_profile(name)
        embedding = config_of(name)["hidden_size"] * config_of(name)["vocab_size"]
        assert model.weight_bytes_read(1 << 20) == 2 * (model.parameters - embedding)


def test_a_model_by_name_by_file_and_by_directory_is_the_same(tmp_path):
    directory = tmp_path / "Qwen2.5-14B"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config_of("Qwen2.5-14B")))
    by_directory = load_model_profile(directory)
    assert by_directory.name == "Qwen2.5-14B"
    assert load_model_profile(str(directory / "config.json")) == by_directory
    assert replace(by_directory, name="qwen2.5-14b") == load_model_profile("Qwen2.5-14B") == MODEL


def test_an_unknown_model_names_the_known_ones():
    with pytest.raises(ValueError, match="no 'gpt-9'; there are llama-3.1-8b, qwen2.5-14b"):
        load_model_profile("gpt-9")


def test_a_directory_without_a_config_says_so(tmp_path):
    with pytest.raises(ValueError, match="config.json: there is no such file"):
        load_model_profile(tmp_path)


def test_a_config_that_lacks_a_field_names_it():
    config = config_of("qwen2.5-14b")
    del config["intermediate_size"]
    with pytest.raises(ValueError, match="no 'intermediate_size'"):
        model_profile(config, "x")


@pytest.mark.parametrize(
    ("field", "value"),
    [("kv_lora_rank", 512), ("mlp_only_layers", [0]), ("decoder_sparse_step", 2)],
)
def test_a_model_whose_layers_the_cost_model_does_not_cover_is_refused(field, value):
    config = {**config_of("qwen3-30b-a3b"), field: value}
    with pytest.raises(ValueError, match=field):
        model_profile(config, "x")


def test_a_tied_embedding_counts_once():
    config = config_of("llama-3.1-8b")
    tied = model_profile({**config, "tie_word_embeddings": True}, "x")
    embedding = config["hidden_size"] * config["vocab_size"]
    assert tied.parameters == load_model_profile("llama-3.1-8b").parameters - embedding


def test_each_scale_divides_its_own_times():
    hardware = replace(load_hardware_profile("a800"), step_overhead_s=0.0, copy_latency_s=0.0)
    prefill, decode = [Work(4096, 0)], [Work(1, 1000)]
    base = CostModel(MODEL, hardware)

    def ratios(**scales):
        scaled = CostModel(MODEL, hardware, **scales)
        return [
            round(base.forward_s(prefill) / scaled.forward_s(prefill), 6),
            round(base.forward_s(decode) / scaled.forward_s(decode), 6),
            round(base.load_s(100) / scaled.load_s(100), 6),
            round(base.backup_s(100) / scaled.backup_s(100), 6),
        ]

    assert ratios(compute_scale=0.5) == [0.5, 1.0, 1.0, 1.0]
    assert ratios(bandwidth_scale=2.0) == [1.0, 2.0, 1.0, 1.0]
    assert ratios(link_scale=0.5) == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("name", ["compute_scale", "bandwidth_scale", "link_scale"])
def test_a_scale_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected a factor above 0, got 0"):
        CostModel(MODEL, load_hardware_profile("a800"), **{name: 0.0})


@pytest.mark.parametrize(("hardware", "tokens_per_s"), [("a800", 8_300), ("h200", 22_000)])
def test_prefill_speed_is_the_one_that_the_profile_was_chosen_for(hardware, tokens_per_s):
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
    moe = {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 512}
    config = {**config_of("qwen2.5-14b"), **moe}
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
