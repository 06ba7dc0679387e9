"""What the extension costs a server whose requests carry no tag: microseconds of a scheduler step.

Conversations in virtual time, nobody of whom is an agent: a turn, a pause, and the next turn with
all before it in front. The device pool is too small for them, so that steps match, insert, evict,
back up and load back. Three servers take turns: stock HiCache as it comes, with the tree core in
Rust; the same with the one in Python, which the extension needs; and the extension. They must do
the same work at the same virtual times, to the last digit. Compared is the processor's time of the
whole scheduler loop, in which the forward pass takes none: what the cost model says that it takes
is beside it.

    OMP_NUM_THREADS=1 python -m benchmarks.untagged_cost --output benchmarks/results/untagged_cost.json
"""

import argparse
import gc
import hashlib
import json
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import this_machine
from benchmarks.tree_core import CORE_VARIABLE
from tokencake_sglang.replay.systems import SYSTEMS
from tokencake_sglang.timewarp.forks import preload, run_in_fork

MOST_SHARE = 0.02
"""This project's target, of a step's time."""

STOCK, PYTHON_CORE, EXTENSION = "hicache", "hicache, Python tree core", "tokencake"

SERVERS = {
    STOCK: ("hicache", "rust"),
    PYTHON_CORE: ("hicache", "python"),
    EXTENSION: ("tokencake", "python"),
}
"""Named configurations and the tree core that SGLang is asked for."""


@dataclass(frozen=True)
class Load:
    """Lengths are tokens, pauses seconds of virtual time."""

    conversations: int = 64
    turns: int = 8
    shared_prefix: int = 256
    question: int = 240
    output: int = 96
    shortest_pause_s: float = 2.0
    longest_pause_s: float = 30.0
    pool_tokens: int = 65_536
    host_tokens: int = 655_360
    seed: int = 7

    @property
    def pauses_s(self) -> tuple[float, float]:
        return self.shortest_pause_s, self.longest_pause_s


LOADS = {
    "64, all fit the device": Load(pool_tokens=262_144),
    "64, three eighths fit": Load(),
    "96 longer ones, a third fits": Load(
        conversations=96, turns=12, pool_tokens=131_072, host_tokens=1_310_720
    ),
}


def measure(server: str, loop: str, load: Load) -> dict[str, Any]:
    """One run; needs a process in which no scheduler has been built."""
    from tokencake_sglang.timewarp.cost import CostModel
    from tokencake_sglang.timewarp.engine import VOCABULARY, Request, TimeWarp
    from tokencake_sglang.timewarp.hardware import load_hardware_profile
    from tokencake_sglang.timewarp.models import load_model_profile

    system_name, os.environ[CORE_VARIABLE] = SERVERS[server]
    warp = TimeWarp(
        CostModel(load_model_profile("qwen2.5-14b"), load_hardware_profile("a800")),
        pool_tokens=load.pool_tokens,
        host_tokens=load.host_tokens,
        overlap=loop == "overlap",
        flags=SYSTEMS[system_name].flags,
    )
    generator = random.Random(load.seed)
    finished = hashlib.sha256()
    hits = Counter[str]()

    def tokens(count: int) -> list[int]:
        return [generator.randrange(1, VOCABULARY) for _ in range(count)]

    head = tokens(load.shared_prefix)
    # Drawn before the run: what is asked must not depend on who is served first.
    turns = [
        [
            (tokens(load.question), tokens(load.output), generator.uniform(*load.pauses_s))
            for _ in range(load.turns)
        ]
        for _ in range(load.conversations)
    ]

    def turn(number: int, index: int, context: list[int]) -> None:
        question, output, pause_s = turns[number][index]
        prompt = [*context, *question]

        def ended(request: Request) -> None:
            finished.update(
                f"{request.rid} {warp.clock.now_s!r} {request.device_hit_tokens}\n".encode()
            )
            hits.update(device=request.device_hit_tokens, host=request.host_hit_tokens)
            if index + 1 < load.turns:
                context = [*prompt, *output]
                warp.call_at(warp.clock.now_s + pause_s, lambda: turn(number, index + 1, context))

        warp.submit(Request(f"{number}/{index}", prompt, output, on_finish=ended))

    for number in range(load.conversations):
        turn(number, 0, head)
    gc.collect()
    gc.freeze()
    started_s = time.process_time()
    warp.run()
    cpu_s = time.process_time() - started_s
    return {
        "tree_core": type(warp.scheduler.tree_cache.tree_core).__name__,
        "cpu_us_per_step": 1e6 * cpu_s / warp.totals.steps,
        "outcome": {
            "steps": warp.totals.steps,
            "virtual_makespan_s": round(warp.clock.now_s, 6),
            "forward_us_per_step": round(1e6 * warp.totals.forward_s / warp.totals.steps, 1),
            "device_hit_tokens": hits["device"],
            "host_hit_tokens": hits["host"],
            "finished": finished.hexdigest()[:16],
        },
    }


def compare(load: Load, loop: str, runs: int) -> dict[str, Any]:
    """Medians over runs in turns, and of each turn's ratios: a slow minute hits all three."""
    measured: dict[str, list[dict[str, Any]]] = {server: [] for server in SERVERS}
    for _ in range(runs):
        for server, found in measured.items():
            found.append(run_in_fork(measure, server, loop, load))
    outcomes = [run["outcome"] for found in measured.values() for run in found]
    if any(outcome != outcomes[0] for outcome in outcomes):
        raise SystemExit(f"untagged_cost: servers did not do the same: {outcomes}")
    cpu_us = {
        server: [run["cpu_us_per_step"] for run in found] for server, found in measured.items()
    }
    return {
        "load": asdict(load),
        "loop": loop,
        "outcome": outcomes[0],
        "tree_cores": {server: found[0]["tree_core"] for server, found in measured.items()},
        "cpu_us_per_step": {server: spread(values) for server, values in cpu_us.items()},
        "extension_over_same_core": ratios(cpu_us[EXTENSION], cpu_us[PYTHON_CORE]),
        "python_core_over_rust": ratios(cpu_us[PYTHON_CORE], cpu_us[STOCK]),
        "extension_over_stock": ratios(cpu_us[EXTENSION], cpu_us[STOCK]),
        "more_than_stock_of_a_forward": ratios(
            [ours - theirs for ours, theirs in zip(cpu_us[EXTENSION], cpu_us[STOCK], strict=True)],
            [outcomes[0]["forward_us_per_step"]] * runs,
        ),
    }


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    return spread([a / b for a, b in zip(ours, theirs, strict=True)], digits=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="of each; the median counts")
    parser.add_argument("--output", metavar="FILE", type=Path)
    arguments = parser.parse_args()
    preload()
    report = {
        "machine": this_machine.description(),
        "runs": arguments.runs,
        "most_share": MOST_SHARE,
        "loads": {name: compare(load, "overlap", arguments.runs) for name, load in LOADS.items()},
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
