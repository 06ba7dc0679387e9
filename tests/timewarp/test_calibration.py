"""A profile is found again from times that were made with it."""

import argparse
import math
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

from tests.models import tiny_llama
from tests.timewarp.conftest import forget_settings
from tokencake_sglang.timewarp import calibration
from tokencake_sglang.timewarp.calibration import Copy, Forward, Samples
from tokencake_sglang.timewarp.cost import CostModel, Work
from tokencake_sglang.timewarp.hardware import load_hardware_profile, profile_toml
from tokencake_sglang.timewarp.models import load_model_profile

MODEL = load_model_profile("qwen2.5-14b")
START = load_hardware_profile("a800")
TRUTH = replace(
    START,
    compute_efficiency=0.52,
    memory_efficiency=0.71,
    step_overhead_s=2.5e-3,
    host_to_device_bytes_per_s=21e9,
    device_to_host_bytes_per_s=17e9,
    copy_latency_s=40e-6,
)


def samples(noise: float = 0.0) -> Samples:
    """What a machine of profile TRUTH would measure; ``noise`` is the relative deviation."""
    generator = random.Random(5)
    cost = CostModel(MODEL, TRUTH)

    def noisy(seconds: float) -> float:
        return seconds * generator.gauss(1.0, noise)

    batches = [(Work(length, 0),) for length in calibration.PREFILLS]
    batches += [(Work(1, context),) * count for count, context in calibration.DECODES]

    def copies(bytes_per_s: float) -> tuple[Copy, ...]:
        return tuple(
            Copy(size, noisy(TRUTH.copy_latency_s + size / bytes_per_s))
            for size in calibration.COPIES
        )

    return Samples(
        tuple(Forward(batch, noisy(cost.forward_s(batch))) for batch in batches),
        copies(TRUTH.host_to_device_bytes_per_s),
        copies(TRUTH.device_to_host_bytes_per_s),
    )


FITTED = (
    "compute_efficiency",
    "memory_efficiency",
    "step_overhead_s",
    "host_to_device_bytes_per_s",
    "device_to_host_bytes_per_s",
    "copy_latency_s",
)


def test_constants_are_recovered_exactly_from_times_without_noise():
    fitted = calibration.fit(samples(), MODEL, START)
    for name in FITTED:
        assert math.isclose(getattr(fitted, name), getattr(TRUTH, name), rel_tol=1e-6), name
    assert calibration.worst_error(samples().forwards, MODEL, fitted) < 1e-6


def test_constants_are_recovered_from_noisy_times():
    fitted = calibration.fit(samples(noise=0.01), MODEL, START)
    for name in FITTED:
        # An overhead is the small part of every time, so noise weighs more on it.
        tolerance = 0.05 if "efficiency" in name or "bytes" in name else 0.5
        assert math.isclose(getattr(fitted, name), getattr(TRUTH, name), rel_tol=tolerance), name


def test_the_profile_that_the_fit_begins_with_does_not_matter():
    start = replace(START, compute_efficiency=0.05, memory_efficiency=0.95)
    assert calibration.fit_forwards(samples(0.01).forwards, MODEL, start) == (
        calibration.fit_forwards(samples(0.01).forwards, MODEL, START)
    )


def test_peaks_and_the_name_stay():
    fitted = calibration.fit(samples(), MODEL, START)
    assert (fitted.name, fitted.peak_flops, fitted.memory_bytes) == (
        START.name,
        START.peak_flops,
        START.memory_bytes,
    )


def test_noise_makes_no_negative_overhead():
    cost = CostModel(MODEL, replace(TRUTH, step_overhead_s=0.0))
    forwards = [
        Forward(sample.batch, cost.forward_s(sample.batch) * (1.0 + 0.01 * (-1) ** i))
        for i, sample in enumerate(samples().forwards)
    ]
    assert calibration.fit_forwards(forwards, MODEL, START).step_overhead_s >= 0.0


def test_one_forward_again_and_again_does_not_make_a_profile():
    with pytest.raises(ValueError, match="expected prefills and decodes of several sizes"):
        calibration.fit_forwards(samples().forwards[:1] * 10, MODEL, START)


def test_one_size_of_copy_does_not_tell_latency_from_speed():
    one = (Copy(1 << 20, 1e-3),) * 3
    with pytest.raises(ValueError, match="too few different ones"):
        calibration.fit_copies(one, one, START)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    calibration.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_command_writes_a_profile_that_loads(tmp_path, capsys):
    output = tmp_path / "mine.toml"
    arguments = parse("--model", "qwen2.5-14b", "--like", "a800", "--output", str(output))
    seen = {}

    def measuring(model_path, engine_options):
        seen.update(engine_options)
        assert load_model_profile(model_path).kv_bytes_per_token == MODEL.kv_bytes_per_token
        return samples()

    assert calibration.run(arguments, measuring) == 0
    profile = load_hardware_profile(str(output))
    assert profile.name == "mine"
    assert math.isclose(profile.compute_efficiency, TRUTH.compute_efficiency, rel_tol=1e-5)
    assert "measured with qwen2.5-14b" in profile.sources[-1]
    assert seen == {"load_format": "dummy"}
    assert "ms measured" in capsys.readouterr().out


def test_the_command_refuses_without_a_gpu(tmp_path, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "mine.toml"
    arguments = parse("--model", "qwen2.5-14b", "--like", "a800", "--output", str(output))
    assert calibration.run(arguments) == 2
    assert "no GPU that torch can use" in capsys.readouterr().err
    assert not output.exists()


def test_the_command_names_the_models_there_are(tmp_path, capsys):
    arguments = parse("--model", "gpt-9", "--like", "a800", "--output", str(tmp_path / "x.toml"))
    assert calibration.run(arguments) == 2
    assert "no 'gpt-9'; there are llama-3.1-8b, qwen2.5-14b" in capsys.readouterr().err


def test_a_profile_survives_being_written(tmp_path):
    file = tmp_path / "a800.toml"
    file.write_text(profile_toml(START))
    assert load_hardware_profile(str(file)) == START


def measured_on_the_cpu(model: str) -> Samples:
    return calibration.measure(
        model,
        prefills=(64, 256),
        decodes=((1, 32), (2, 32), (1000, 32)),
        copies=(1 << 20,),
        repetitions=1,
        engine_options={
            "load_format": "dummy",
            "attention_backend": "torch_native",
            "max_total_tokens": 4096,
            "dtype": "float32",
        },
        device="cpu",
    )


@pytest.mark.slow
def test_the_engine_is_timed_on_the_cpu_too(tmp_path):
    """Not for a profile: what it measures there means nothing, that it measures does."""
    # In a process of its own: another test may have loaded the extension into this one.
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=forget_settings) as pool:
        measured = pool.submit(measured_on_the_cpu, str(tiny_llama(tmp_path / "model"))).result()
    # A thousand requests do not fit into the pool, so they are left out.
    assert [(len(f.batch), f.batch[0].new_tokens) for f in measured.forwards] == [
        (1, 1),
        (2, 1),
        (1, 64),
        (1, 256),
    ]
    assert all(f.seconds > 0.0 for f in measured.forwards)
    assert [copy.bytes for copy in (*measured.to_device, *measured.to_host)] == [1 << 20] * 2
