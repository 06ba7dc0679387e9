"""How many steps of SGLang's scheduler a second of one core holds in virtual time.

Fifty requests run at any time. Every run is a process of its own; the two loops and the systems
take turns, so that a slow minute of the machine hits all. Besides real time there is the process's
own (CPU) time, which other programs on the machine stretch less.

    OMP_NUM_THREADS=1 python -m benchmarks.step_rate --output benchmarks/results/step_rate.json
"""

import argparse
import json
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import this_machine
from tokencake_sglang.replay.systems import SYSTEMS
from tokencake_sglang.timewarp.forks import preload, run_in_fork

REQUIRED = {"normal": 800, "overlap": 400}
"""Steps a second that a matrix of replays needs."""

MEASURED = ("stock", "hicache", "tokencake")


@dataclass(frozen=True)
class Load:
    """Lengths are tokens. Prompts have nothing in common; all requests are there at the start."""

    requests: int = 60
    running: int = 50
    prompt: int = 500
    output: int = 400
    pool_tokens: int = 65_536
    host_tokens: int = 655_360
    seed: int = 7


def measure(system_name: str, loop: str, load: Load) -> dict[str, Any]:
    """One run; needs a process in which no scheduler has been built."""
    from tokencake_sglang.timewarp.cost import CostModel
    from tokencake_sglang.timewarp.engine import VOCABULARY, Request, TimeWarp
    from tokencake_sglang.timewarp.hardware import load_hardware_profile
    from tokencake_sglang.timewarp.models import load_model_profile

    system = SYSTEMS[system_name]
    started_s = time.perf_counter()
    warp = TimeWarp(
        CostModel(load_model_profile("qwen2.5-14b"), load_hardware_profile("a800")),
        pool_tokens=load.pool_tokens,
        host_tokens=load.host_tokens if system.host_tier else 0,
        max_running_requests=load.running,
        overlap=loop == "overlap",
        flags=system.flags,
    )
    built_s = time.perf_counter()
    generator = random.Random(load.seed)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(1, VOCABULARY) for _ in range(count)]

    for number in range(load.requests):
        warp.submit(Request(f"r{number}", tokens(load.prompt), tokens(load.output)))
    running_s, running_cpu_s = time.perf_counter(), time.process_time()
    warp.run()
    real_s, cpu_s = time.perf_counter() - running_s, time.process_time() - running_cpu_s
    return {
        "steps": warp.totals.steps,
        "steps_per_s": warp.totals.steps / real_s,
        "steps_per_cpu_s": warp.totals.steps / cpu_s,
        "start_s": built_s - started_s,
        "makespan_s": warp.clock.now_s,
        "tree_core": type(warp.scheduler.tree_cache.tree_core).__name__,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of what varies; what a run computes must not."""
    same = {(run["steps"], run["makespan_s"], run["tree_core"]) for run in runs}
    if len(same) != 1:
        raise SystemExit(f"step_rate: runs of one system came out differently: {sorted(same)}")
    varying = ("steps_per_s", "steps_per_cpu_s", "start_s")
    digits = {"start_s": 2}
    return {
        "steps": runs[0]["steps"],
        "virtual_makespan_s": round(runs[0]["makespan_s"], 6),
        "tree_core": runs[0]["tree_core"],
        **{
            name: round(statistics.median(run[name] for run in runs), digits.get(name))
            for name in varying
        },
        "all_steps_per_cpu_s": sorted(round(run["steps_per_cpu_s"]) for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="of each; the median counts")
    parser.add_argument("--output", metavar="FILE", type=Path)
    arguments = parser.parse_args()
    load = Load()
    started_s = time.perf_counter()
    preload()
    preload_s = time.perf_counter() - started_s
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(arguments.runs):
        for system in MEASURED:
            for loop in REQUIRED:
                run = run_in_fork(measure, system, loop, load)
                runs.setdefault((system, loop), []).append(run)
    rates = [
        {"system": system, "loop": loop, "required": REQUIRED[loop], **summary(measured)}
        for (system, loop), measured in runs.items()
    ]
    report = {
        "machine": this_machine.description(),
        "load": asdict(load),
        "runs": arguments.runs,
        "preload_s": round(preload_s, 1),
        "rates": rates,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    slow = [rate for rate in rates if rate["steps_per_cpu_s"] < rate["required"]]
    if slow:
        raise SystemExit(f"step_rate: too slow: {slow}")


if __name__ == "__main__":
    main()
