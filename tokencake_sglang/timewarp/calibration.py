"""Makes a hardware profile from what a machine does, ``tokencake calibrate``.

``measure`` runs a model on the GPU and copies over the link; ``fit`` turns what was measured into
the constants of a ``HardwareProfile``. The fit is plain arithmetic and needs no GPU.
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from tokencake_sglang.timewarp.cost import CostModel, Work
from tokencake_sglang.timewarp.hardware import HardwareProfile, load_hardware_profile, profile_toml
from tokencake_sglang.timewarp.models import ModelProfile, config_of, load_model_profile

PREFILLS = (512, 1024, 2048, 4096, 8192)
"""Prompt lengths in tokens, each prefilled in one forward."""

DECODES = (
    *((1, 1024), (4, 4096), (16, 1024), (16, 4096)),
    *((16, 8192), (32, 4096), (64, 1024), (64, 2048)),
)
"""(requests, tokens of context each) that decode together; far apart, because reading the weights
looks like an overhead unless the contexts differ much."""

COPIES = tuple(1 << shift for shift in range(20, 31, 2))
"""Bytes, 1 MiB to 1 GiB."""

REPETITIONS = 5
DECODE_STEPS = 64


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward pass and the seconds that it took."""

    batch: tuple[Work, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy between host and device and the seconds that it took."""

    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Samples:
    """What was measured; ``to_device`` and ``to_host`` are the two ways of the link."""

    forwards: tuple[Forward, ...]
    to_device: tuple[Copy, ...]
    to_host: tuple[Copy, ...]


# -- the fit --------------------------------------------------------------------------------------


def fit(samples: Samples, model: ModelProfile, hardware: HardwareProfile) -> HardwareProfile:
    """``hardware`` with the efficiencies, overheads and link speeds that fit the samples best.

    Best: the least sum of squared relative errors under ``CostModel``'s formulas. Peaks and the
    size of the memory stay as they are: only their products with the efficiencies show in times.

    Raises:
        ValueError: when the samples do not determine a constant.
    """
    fitted = fit_forwards(samples.forwards, model, hardware)
    return fit_copies(samples.to_device, samples.to_host, fitted)


def fit_forwards(
    forwards: Sequence[Forward], model: ModelProfile, hardware: HardwareProfile
) -> HardwareProfile:
    """Fits ``compute_efficiency``, ``memory_efficiency`` and ``step_overhead_s``.

    A forward takes ``max(flops / C, bytes / B) + overhead``. Once it is known which forwards are
    bound by arithmetic, that is linear in 1/C, 1/B and the overhead. They are those with the most
    operations a byte, so there are no more ways to divide the forwards than forwards; the one that
    fits best is taken.
    """
    cost = CostModel(model, hardware)
    compute_s = numpy.array([cost.flops(f.batch) for f in forwards]) / hardware.peak_flops
    memory_s = (
        numpy.array([cost.traffic_bytes(f.batch) for f in forwards]) / hardware.memory_bytes_per_s
    )
    seconds = numpy.array([f.seconds for f in forwards])
    best: tuple[float, float, float] | None = None
    least = math.inf
    for least_intensity in numpy.unique(compute_s / memory_s)[1:]:
        by_compute = compute_s / memory_s >= least_intensity
        columns = [numpy.where(by_compute, compute_s, 0.0), numpy.where(by_compute, 0.0, memory_s)]
        try:
            solution = _relative_least_squares(columns, seconds)
        except ValueError:
            continue
        modelled_s = numpy.maximum(compute_s * solution[0], memory_s * solution[1]) + solution[2]
        squares = float(((modelled_s / seconds - 1.0) ** 2).sum())
        if squares < least:
            best, least = solution, squares
    if best is None:
        raise ValueError("forwards: expected prefills and decodes of several sizes, undisturbed")
    return replace(
        hardware,
        compute_efficiency=1.0 / best[0],
        memory_efficiency=1.0 / best[1],
        step_overhead_s=best[2],
    )


def fit_copies(
    to_device: Sequence[Copy], to_host: Sequence[Copy], hardware: HardwareProfile
) -> HardwareProfile:
    """Fits both speeds of the link and the latency that they share."""
    if not to_device or not to_host:
        raise ValueError("copies: expected some each way")
    columns = [
        numpy.array([float(c.bytes) for c in to_device] + [0.0] * len(to_host)),
        numpy.array([0.0] * len(to_device) + [float(c.bytes) for c in to_host]),
    ]
    seconds = numpy.array([c.seconds for c in (*to_device, *to_host)])
    per_byte_to_device, per_byte_to_host, latency_s = _relative_least_squares(columns, seconds)
    return replace(
        hardware,
        host_to_device_bytes_per_s=1.0 / per_byte_to_device,
        device_to_host_bytes_per_s=1.0 / per_byte_to_host,
        copy_latency_s=latency_s,
    )


def worst_error(
    forwards: Sequence[Forward], model: ModelProfile, hardware: HardwareProfile
) -> float:
    """The largest relative error of the cost model over the forwards."""
    cost = CostModel(model, hardware)
    return max(abs(cost.forward_s(f.batch) / f.seconds - 1.0) for f in forwards)


def _relative_least_squares(
    columns: Sequence[numpy.ndarray], seconds: numpy.ndarray
) -> tuple[float, float, float]:
    """Two slopes above 0 and an intercept of at least 0 for ``seconds``, by relative error."""
    with_intercept = numpy.stack([*columns, numpy.ones_like(seconds)], axis=1)
    rows = with_intercept / seconds[:, None]
    if numpy.linalg.matrix_rank(rows / numpy.linalg.norm(rows, axis=0).clip(1e-300)) < 3:
        raise ValueError("samples: too few different ones to tell the constants apart")
    scale = numpy.linalg.norm(rows, axis=0)
    solution = numpy.linalg.lstsq(rows / scale, numpy.ones_like(seconds), rcond=None)[0] / scale
    if solution[2] < 0.0:  # noise: there is no negative overhead
        slopes = numpy.linalg.lstsq(rows[:, :2] / scale[:2], numpy.ones_like(seconds), rcond=None)[
            0
        ]
        solution = numpy.array([*(slopes / scale[:2]), 0.0])
    if (solution[:2] <= 0.0).any():
        raise ValueError("samples: no positive speed fits them; were they measured undisturbed?")
    return float(solution[0]), float(solution[1]), float(solution[2])


# -- the measurement ------------------------------------------------------------------------------


def measure(
    model_path: str,
    *,
    prefills: Sequence[int] = PREFILLS,
    decodes: Sequence[tuple[int, int]] = DECODES,
    copies: Sequence[int] = COPIES,
    repetitions: int = REPETITIONS,
    engine_options: dict[str, Any] | None = None,
    device: str = "cuda",
) -> Samples:
    """Runs SGLang's offline engine and torch's copies on this machine.

    Args:
        model_path: a directory with weights, or one with a ``config.json`` and
            ``engine_options={"load_format": "dummy"}``: speed does not depend on the weights.
        engine_options: further ``sglang.Engine`` arguments.
        device: for tests; the figures of anything but a GPU make no profile.

    Raises:
        RuntimeError: without a GPU that torch can use.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("there is no GPU that torch can use; a profile cannot be measured here")
    to_device, to_host = _copies(copies, repetitions, device)
    return Samples(
        forwards=_forwards(
            model_path, prefills, decodes, repetitions, engine_options or {}, device
        ),
        to_device=to_device,
        to_host=to_host,
    )


def _forwards(
    model_path: str,
    prefills: Sequence[int],
    decodes: Sequence[tuple[int, int]],
    repetitions: int,
    engine_options: dict[str, Any],
    device: str,
) -> tuple[Forward, ...]:
    import sglang

    options: dict[str, Any] = {
        "model_path": model_path,
        "device": device,
        "skip_tokenizer_init": True,
        "disable_radix_cache": True,  # every prompt is computed
        "chunked_prefill_size": max(prefills),  # in one forward
        "log_level": "error",
        **engine_options,
    }
    tokens = random.Random(1)
    with sglang.Engine(**options) as engine:
        pool_tokens = engine.get_server_info()["max_total_num_tokens"]

        def generate_s(requests: int, prompt_tokens: int, output_tokens: int) -> float:
            """Median seconds, after one run that is not counted."""
            prompts = [
                [tokens.randrange(3, 1000) for _ in range(prompt_tokens)] for _ in range(requests)
            ]
            sampling = {"max_new_tokens": output_tokens, "temperature": 0, "ignore_eos": True}
            times = []
            for _ in range(repetitions + 1):
                started = time.perf_counter()
                engine.generate(input_ids=prompts, sampling_params=sampling)
                times.append(time.perf_counter() - started)
            return statistics.median(times[1:])

        def decode_step_s(requests: int, prompt_tokens: int) -> float:
            """Two runs that differ in nothing but decode steps; what surrounds them cancels."""
            many_s = generate_s(requests, prompt_tokens, 1 + DECODE_STEPS)
            return (many_s - generate_s(requests, prompt_tokens, 1)) / DECODE_STEPS

        found = [
            Forward(
                # On average half of the steps have been taken.
                (Work(1, context + DECODE_STEPS // 2),) * requests,
                decode_step_s(requests, context),
            )
            for requests, context in decodes
            # Others would not all decode at once.
            if requests * (context + 2 * DECODE_STEPS) <= 0.9 * pool_tokens
        ]
        # What the engine takes beside a forward: a prompt of few tokens costs a decode step's time.
        beside_s = max(0.0, generate_s(1, 16, 1) - decode_step_s(1, 16))
        found += [
            Forward((Work(length, 0),), generate_s(1, length, 1) - beside_s) for length in prefills
        ]
    return tuple(found)


def _copies(
    sizes: Sequence[int], repetitions: int, device: str
) -> tuple[tuple[Copy, ...], tuple[Copy, ...]]:
    """To the device and back, through pinned memory as HiCache copies."""
    import torch

    on_gpu = device == "cuda"
    to_device, to_host = [], []
    for size in sizes:
        there = torch.zeros(size, dtype=torch.uint8, device=device)
        here = torch.zeros(size, dtype=torch.uint8, pin_memory=on_gpu)

        def copy_s(target: Any, source: Any) -> float:
            times = []
            for _ in range(repetitions + 1):
                started = time.perf_counter()
                target.copy_(source, non_blocking=True)
                if on_gpu:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
            return statistics.median(times[1:])

        to_device.append(Copy(size, copy_s(there, here)))
        to_host.append(Copy(size, copy_s(here, there)))
    return tuple(to_device), tuple(to_host)


# -- the command ----------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        help="a model directory, or a built-in model's name, which is run with dummy weights",
    )
    parser.add_argument(
        "--like", required=True, help="profile whose peaks and memory size this GPU has"
    )
    parser.add_argument("--output", required=True, metavar="FILE.toml", help="the new profile")
    parser.add_argument(
        "--engine-options", default="{}", metavar="JSON", help="further sglang.Engine arguments"
    )


def run(arguments: argparse.Namespace, measuring: Callable[..., Samples] | None = None) -> int:
    """The command; returns its exit status, 2 where there is no GPU or an argument does not fit."""
    measuring = measuring or measure
    try:
        hardware = load_hardware_profile(arguments.like)
        model = load_model_profile(arguments.model)
        options = json.loads(arguments.engine_options)
        with tempfile.TemporaryDirectory() as directory:
            model_path = arguments.model
            if not Path(model_path).exists():
                model_path = str(_dummy_model(Path(directory), model.name))
                options = {"load_format": "dummy", **options}
            samples = measuring(model_path, engine_options=options)
        fitted = fit(samples, model, hardware)
    except (RuntimeError, ValueError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    worst = worst_error(samples.forwards, model, fitted)
    measured = (
        f"the rest: measured with {model.name} by tokencake calibrate, "
        f"{len(samples.forwards)} forwards, the worst {worst:.1%} off"
    )
    sources = (*hardware.sources[:1], measured)
    output = Path(arguments.output)
    output.write_text(profile_toml(replace(fitted, name=output.stem, sources=sources)))
    for forward in samples.forwards:
        modelled_s = CostModel(model, fitted).forward_s(forward.batch)
        work = forward.batch[0]
        print(
            f"{len(forward.batch)} x {work.new_tokens} tokens after {work.context_tokens}: "
            f"{forward.seconds * 1e3:.2f} ms measured, {modelled_s * 1e3:.2f} ms modelled"
        )
    print(f"{output}: worst forward {worst:.1%} off")
    return 0


def _dummy_model(directory: Path, name: str) -> Path:
    """A model directory for ``load_format=dummy``, from the built-in fields of its config."""
    config = config_of(name)
    architecture = {
        "qwen2": "Qwen2ForCausalLM",
        "llama": "LlamaForCausalLM",
        "qwen3_moe": "Qwen3MoeForCausalLM",
    }[config["model_type"]]
    whole = {
        "architectures": [architecture],
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 32768,
        **config,
    }
    (directory / "config.json").write_text(json.dumps(whole))
    return directory
