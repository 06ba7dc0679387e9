"""What SGLang's two tree cores cost in the scheduler loop: Rust against Python.

Drives SGLang's own Scheduler, without the extension and without a forward pass, over applications
of agents that share a prefix and come back with a longer one. The pool is too small for them, so
that steps match, insert, evict, back up and load back. Each measurement is a fresh process; the two
cores take turns, so that a slow minute of the machine hits both.

    python -m benchmarks.tree_core --output benchmarks/results/tree_core.json
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CORES = ("rust", "python")
CORE_VARIABLE = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"
OUTCOME = ("steps", "prompt_tokens", "cached_tokens", "hit_rate", "loaded_back_tokens")
"""What has to be the same for both cores: they decided alike at every step."""


@dataclass(frozen=True)
class Workload:
    """Lengths are tokens, pauses are scheduler steps.

    Every application's prompts begin with the prefix all share, then with its own. Its agents'
    turns each send all before them again, followed by a tool's answer.
    """

    applications: int = 24
    agents: int = 4
    turns: int = 10
    shared_prefix: int = 256
    application_prefix: int = 1024
    agent_prefix: int = 128
    tool_answer: int = 160
    output: int = 48
    longest_pause: int = 120
    pool_tokens: int = 24_576
    host_ratio: float = 3.0
    page_size: int = 1
    running_requests: int = 24
    seed: int = 7

    @property
    def name(self) -> str:
        return f"{self.applications} applications, pages of {self.page_size}"


WORKLOADS = (
    Workload(),
    Workload(page_size=16),
    Workload(applications=96, pool_tokens=131_072, running_requests=64),
)


@dataclass
class Turns:
    """One agent's conversation: the prompt that comes next, and how often it still comes."""

    prompt: list[int]
    left: int
    due_step: int


class Driver:
    """A stock scheduler whose forward pass is replaced by seeded random tokens."""

    def __init__(self, workload: Workload, directory: Path) -> None:
        import torch
        from sglang.srt.layers.logits_processor import LogitsProcessorOutput
        from sglang.srt.managers.utils import GenerationBatchResult

        from tests.scheduler_harness import SchedulerHarness

        self.workload = workload
        self.harness = SchedulerHarness(
            directory,
            *("--hicache-ratio", str(workload.host_ratio)),
            *("--max-running-requests", str(workload.running_requests)),
            *("--chunked-prefill-size", "4096"),
            kv_tokens=workload.pool_tokens,
            page_size=workload.page_size,
        )
        scheduler = self.harness.scheduler
        generator = torch.Generator().manual_seed(workload.seed)

        def forward(batch: Any, **_: Any) -> GenerationBatchResult:
            return GenerationBatchResult(
                logits_output=LogitsProcessorOutput(next_token_logits=None),
                next_token_ids=torch.randint(3, 1000, (len(batch.reqs),), generator=generator),
            )

        scheduler.tp_worker.forward_batch_generation = forward
        scheduler.model_worker.forward_batch_generation = forward
        self.loaded_back_tokens = 0
        controller = scheduler.tree_cache.cache_controller
        start_loading = controller.start_loading

        def counted_start_loading() -> int:
            self.loaded_back_tokens += sum(len(op.device_indices) for op in controller.load_queue)
            return start_loading()

        controller.start_loading = counted_start_loading

    def core_class(self) -> str:
        core = self.harness.cache.tree_core
        return f"{type(core).__module__}.{type(core).__qualname__}"

    def run(self) -> dict[str, Any]:
        """Drives the workload to its end; seconds of this process, and what the cache did."""
        rng = random.Random(self.workload.seed)
        idle = list(self._conversations(rng))
        in_flight: dict[str, Turns] = {}
        harness = self.harness
        prompt_tokens = steps = 0
        gc.collect()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        while idle or in_flight:
            for turns in [turns for turns in idle if turns.due_step <= steps]:
                idle.remove(turns)
                prompt_tokens += len(turns.prompt)
                in_flight[harness.submit(turns.prompt, self.workload.output)] = turns
            harness.step()
            steps += 1
            for rid in [rid for rid in in_flight if rid in harness.finished]:
                turns = in_flight.pop(rid)
                turns.left -= 1
                if turns.left:
                    answer = _tokens(rng, self.workload.tool_answer)
                    turns.prompt = turns.prompt + harness.finished[rid] + answer
                    turns.due_step = steps + rng.randrange(1, self.workload.longest_pause)
                    idle.append(turns)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        cached_tokens = sum(harness.cached_tokens.values())
        return {
            "cpu_us_per_step": cpu_s / steps * 1e6,
            "wall_us_per_step": wall_s / steps * 1e6,
            "steps": steps,
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
            "hit_rate": cached_tokens / prompt_tokens,
            "loaded_back_tokens": self.loaded_back_tokens,
        }

    def _conversations(self, rng: random.Random) -> Iterator[Turns]:
        workload = self.workload
        shared = _tokens(rng, workload.shared_prefix)
        for application in range(workload.applications):
            prefix = shared + _tokens(rng, workload.application_prefix)
            for _ in range(workload.agents):
                prompt = prefix + _tokens(rng, workload.agent_prefix)
                yield Turns(prompt, workload.turns, due_step=application * 8)


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, 1000) for _ in range(count)]


def measure(core: str, workload: Workload) -> dict[str, Any]:
    """One run in a process of its own, which prints its result as the last line.

    Raises:
        RuntimeError: when the process failed, or SGLang fell back to another core.
    """
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.tree_core", "--measure", json.dumps(asdict(workload))],
        env=os.environ | {CORE_VARIABLE: core, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        raise RuntimeError(f"the run with the {core} core failed:\n{child.stderr[-4000:]}")
    result = json.loads(child.stdout.splitlines()[-1])
    if ("rust" in result["core_class"].lower()) is not (core == "rust"):
        raise RuntimeError(f"asked for the {core} core, got {result['core_class']}")
    return result


def compare(workload: Workload, repetitions: int) -> dict[str, Any]:
    """Runs both cores in turns.

    Raises:
        AssertionError: when two runs differ in anything but time.
    """
    runs: dict[str, list[dict[str, Any]]] = {core: [] for core in CORES}
    for repetition in range(repetitions):
        for core in CORES if repetition % 2 == 0 else reversed(CORES):
            run = measure(core, workload)
            runs[core].append(run)
            print(
                f"{workload.name}, {core}: {run['cpu_us_per_step']:.0f} us a step, "
                f"{run['steps']} steps, hit rate {run['hit_rate']:.4f}",
                flush=True,
            )
    outcomes = {tuple(run[name] for name in OUTCOME) for core in CORES for run in runs[core]}
    assert len(outcomes) == 1, f"the cores decided differently: {outcomes}"
    outcome = dict(zip(OUTCOME, outcomes.pop(), strict=True))
    cores = {
        core: {
            "core_class": runs[core][0]["core_class"],
            "cpu_us_per_step": _spread([run["cpu_us_per_step"] for run in runs[core]]),
            "wall_us_per_step": _spread([run["wall_us_per_step"] for run in runs[core]]),
        }
        for core in CORES
    }
    medians = {core: cores[core]["cpu_us_per_step"]["median"] for core in CORES}
    return {
        "workload": asdict(workload),
        "repetitions": repetitions,
        "outcome": outcome,
        "cores": cores,
        "python_over_rust": round(medians["python"] / medians["rust"], 4),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "min": round(min(values), 1),
        "max": round(max(values), 1),
    }


def machine() -> dict[str, Any]:
    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{package: installed(package) for package in ("sglang", "torch", "tokencake-sglang")},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    return (
        f"{fields.get('model name', '?')} (family {fields.get('cpu family', '?')}, "
        f"model {fields.get('model', '?')}, {fields.get('cpu MHz', '?')} MHz)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file to write; only printed without")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--workloads", type=int, nargs="+", default=[*range(len(WORKLOADS))], help="by number"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        with tempfile.TemporaryDirectory() as directory:
            driver = Driver(Workload(**json.loads(args.measure)), Path(directory))
            print(json.dumps({"core_class": driver.core_class(), **driver.run()}))
        return
    chosen = [WORKLOADS[number] for number in args.workloads]
    result = {
        "machine": machine(),
        "comparisons": [compare(workload, args.repetitions) for workload in chosen],
    }
    for workload, comparison in zip(chosen, result["comparisons"], strict=True):
        for core, figures in comparison["cores"].items():
            spread = figures["cpu_us_per_step"]
            print(
                f"{workload.name}, {core}: median {spread['median']:.0f} us a step "
                f"({spread['min']:.0f} to {spread['max']:.0f})"
            )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
