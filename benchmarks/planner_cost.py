"""What TokenCake's planner costs a scheduler: microseconds a step, and bytes an agent.

SGLang's scheduler runs in virtual time, with requests decoding throughout. Measured in real time is
the planner's own work: ``Planner.step`` and the ticks that it received since the step before. Once
with no agent known, once with a thousand that are in tool calls: of lengths from seconds to
minutes, half of them declared, so that some are due every second; each that returns takes a turn
and stops at the next call. Their KV fills the device pool and, for the greater part, is on the host
only. So short are their contexts that a forward hides their load, and none is uploaded: once more
with longer ones, in pools as much larger. And once with a host tier that is full, so that what is
copied has to be chosen; without the working set, which would keep out those who do not fit.
Measured beside is how long the scheduler takes for the rest, to form batches and to process their
results: the same work on every machine. What is measured in one process does not depend on the
other: each is a fork of its own.

    OMP_NUM_THREADS=1 python -m benchmarks.planner_cost
"""

import argparse
import gc
import itertools
import json
import math
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import this_machine
from tokencake_sglang.agents.events import CallFinish, CallStart, Tick
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.replay.quantiles import quantile
from tokencake_sglang.replay.systems import SYSTEMS
from tokencake_sglang.timewarp.forks import preload, run_in_fork

if TYPE_CHECKING:
    from tokencake_sglang.timewarp.engine import Request, TimeWarp

OUTPUT = Path(__file__).parent / "results" / "planner_cost.json"

NO_AGENTS, STALLED = "no agents", "stalled"
LONG, HOST_FULL = "stalled, long contexts", "stalled, host tier full"

MOST_MEAN_US = {NO_AGENTS: 5.0, STALLED: 50.0}
"""Bars: mean microseconds a step."""

RUNS = 3
"""By turns, of what has a bar: neighbours on a virtual machine make the same run take half as long
again, or twice."""

MOST_AGENT_BYTES = 2048

SIDES = ("agents", "engine", "observability", "spatial", "temporal")
"""Folders of the extension whose allocations are the planner's."""

TRACED_FRAMES = 12

BRIEFLY: dict[str, Any] = {
    "running": 0,
    "prompt": 96,
    "output": 2,
    "shortest_call_s": 500.0,
    "longest_call_s": 500.0,
}
"""For memory, which is slow to trace: agents known after few steps, and not back before the end."""


@dataclass(frozen=True)
class Load:
    """Lengths are tokens, calls' lengths log-uniform seconds. Every agent is its own application.

    ``agents_before`` are known before memory is measured, so that what is bounded, such as the
    decision log, is full.
    """

    agents: int = 1000
    agents_before: int = 400
    head: int = 64
    prompt: int = 400
    output: int = 16
    shortest_call_s: float = 2.0
    longest_call_s: float = 500.0
    tools: tuple[str, ...] = ("search", "tests", "build", "browser")
    running: int = 8
    running_prompt: int = 200
    running_output: int = 2000
    pool_tokens: int = 131_072
    host_tokens: int = 1_310_720
    flags: tuple[str, ...] = SYSTEMS["tokencake"].flags
    steps: int = 4000
    warmup_steps: int = 200
    seed: int = 7


class Agents:
    """Drives ``count`` agents of a TimeWarp: a turn, a call, the next turn, without end."""

    def __init__(self, warp: "TimeWarp", load: Load, first: int, count: int) -> None:
        self.warp = warp
        self.load = load
        self._random = random.Random(f"{load.seed}/{first}")
        head = tokens(random.Random(load.seed), load.head)
        own = load.prompt - load.head
        self._contexts = {
            f"agent-{number}": [*head, *tokens(self._random, own)]
            for number in range(first, first + count)
        }
        self._turns = dict.fromkeys(self._contexts, 0)

    def start(self) -> None:
        for name in self._contexts:
            self._turn(name)

    @property
    def all_known(self) -> bool:
        """Whether every agent has taken a turn, and so has KV in the tree and a call."""
        return all(self._turns.values())

    def _turn(self, name: str) -> None:
        from tokencake_sglang.timewarp.engine import Request

        self.warp.submit(
            Request(
                f"{name}/{self._turns[name]}",
                list(self._contexts[name]),
                tokens(self._random, self.load.output),
                tag=AgentTag(agent=name, application=name),
                on_finish=lambda done: self._stop_at_call(name, done),
            )
        )

    def _stop_at_call(self, name: str, done: "Request") -> None:
        self._contexts[name] += [*done.output, *tokens(self._random, self.load.output)]
        self._turns[name] += 1
        least, most = math.log(self.load.shortest_call_s), math.log(self.load.longest_call_s)
        length_s = math.exp(self._random.uniform(least, most))
        declared_s = length_s * self._random.uniform(0.8, 1.25)
        self.warp.signal(
            CallStart(
                agent=name,
                application=name,
                call_id=done.rid,
                tool=self._random.choice(self.load.tools),
                predicted_s=declared_s if self._random.random() < 0.5 else None,
            )
        )
        self.warp.call_at(self.warp.clock.now_s + length_s, lambda: self._return(name, done.rid))

    def _return(self, name: str, call_id: str) -> None:
        self.warp.signal(CallFinish(agent=name, application=name, call_id=call_id))
        self._turn(name)


class Stopwatch:
    """Times every ``Planner.step`` of this process, and the ticks received since the one before.

    To be made before the scheduler: its dispatcher keeps the planner's methods.
    """

    def __init__(self) -> None:
        from sglang.srt.managers.scheduler import Scheduler

        from tokencake_sglang.engine.cache import TokencakeCache
        from tokencake_sglang.engine.planner import Planner
        from tokencake_sglang.engine.rank import RankPlanner

        self._within: list[str] = []
        self._time(Planner, "step", self._stepped)
        self._time(RankPlanner, "receive", self._received)
        self._time(TokencakeCache, "load_back", self._loaded)
        self._time(TokencakeCache, "ready_to_load_host_cache", self._loaded)
        self._time(Scheduler, "get_next_batch_to_run", self._scheduled)
        self._time(Scheduler, "process_batch_result", self._scheduled)
        self.start_over()

    def start_over(self) -> None:
        self.steps_ns: list[int] = []
        self.ticks_ns: list[int] = []
        self.loads_ns: list[int] = []
        """Of the steps, what SGLang took to make room for an upload and to start it."""
        self.schedulers_ns: list[int] = []
        """What the scheduler took between two steps, with the extension's hooks, to form a batch and to
        process its results: the same work on every machine, for comparison."""
        self._tick_ns = self._load_ns = self._scheduler_ns = 0

    def _time(self, owner: type, name: str, note: Callable[..., None]) -> None:
        method, clock = getattr(owner, name), time.perf_counter_ns

        def timed(*arguments: Any, **named: Any) -> Any:
            self._within.append(name)
            started_ns = clock()
            result = method(*arguments, **named)
            note(clock() - started_ns, *arguments)
            self._within.pop()
            return result

        setattr(owner, name, timed)

    def _stepped(self, took_ns: int, *_: Any) -> None:
        self.steps_ns.append(took_ns)
        self.ticks_ns.append(self._tick_ns)
        self.loads_ns.append(self._load_ns)
        self.schedulers_ns.append(self._scheduler_ns)
        self._tick_ns = self._load_ns = 0
        self._scheduler_ns = -took_ns  # the step is a part of ``get_next_batch_to_run``

    def _loaded(self, took_ns: int, *_: Any) -> None:
        if "step" in self._within:  # SGLang loads at admission as well
            self._load_ns += took_ns

    def _scheduled(self, took_ns: int, *_: Any) -> None:
        self._scheduler_ns += took_ns

    def _received(self, took_ns: int, _planner: Any, message: Any) -> None:
        if isinstance(message.entry().event, Tick):
            self._tick_ns += took_ns


def tokens(generator: random.Random, count: int) -> list[int]:
    from tokencake_sglang.timewarp.engine import VOCABULARY

    return [generator.randrange(1, VOCABULARY) for _ in range(count)]


def build(load: Load) -> "TimeWarp":
    """An A800's server with the extension, and requests that decode throughout."""
    from tokencake_sglang.timewarp.cost import CostModel
    from tokencake_sglang.timewarp.engine import Request, TimeWarp
    from tokencake_sglang.timewarp.hardware import load_hardware_profile
    from tokencake_sglang.timewarp.models import load_model_profile

    warp = TimeWarp(
        CostModel(load_model_profile("qwen2.5-14b"), load_hardware_profile("a800")),
        pool_tokens=load.pool_tokens,
        host_tokens=load.host_tokens,
        flags=load.flags,
    )
    generator = random.Random(load.seed)
    numbers = itertools.count()

    def another(_ended: "Request | None" = None) -> None:
        prompt = tokens(generator, load.running_prompt)
        output = tokens(generator, load.running_output)
        warp.submit(Request(f"running-{next(numbers)}", prompt, output, on_finish=another))

    for _ in range(load.running):
        another()
    return warp


def run(warp: "TimeWarp", phases: Iterator[Callable[[], bool]]) -> None:
    """Runs the server's loop once; what each phase yields says when it is over."""
    is_over = next(phases)

    def look(_warp: "TimeWarp") -> None:
        nonlocal is_over
        while is_over():
            try:
                is_over = next(phases)
            except StopIteration:
                warp.scheduler.gracefully_exit = True
                return

    warp.observers.append(look)
    warp.run()


def measure_steps(load: Load, agents: int) -> dict[str, Any]:
    """Microseconds a step, with so many agents; needs a process without a scheduler."""
    from tokencake_sglang.agents.table import AgentState
    from tokencake_sglang.engine.scheduler_hooks import planner_of

    stopwatch = Stopwatch()
    warp = build(load)
    planner = planner_of(warp.scheduler)
    counts_before: dict[str, int] = {}
    begun_s = 0.0

    def phases() -> Iterator[Callable[[], bool]]:
        nonlocal begun_s
        driven = Agents(warp, load, 0, agents)
        driven.start()
        yield lambda: driven.all_known
        stopwatch.start_over()
        yield lambda: len(stopwatch.steps_ns) >= load.warmup_steps
        stopwatch.start_over()
        counts_before.update(planner.log.counts)
        begun_s = warp.clock.now_s
        yield lambda: len(stopwatch.steps_ns) >= load.steps

    run(warp, phases())
    both_ns = [sum(pair) for pair in zip(stopwatch.steps_ns, stopwatch.ticks_ns, strict=True)]
    by_tier = [planner.cache.tokens_by_tier(r.leaf_id) for r in planner.residents.values()]
    return {
        "agents": len(planner.table),
        "stalled_at_the_end": sum(agent.state is AgentState.STALLED for agent in planner.table),
        "agents_wholly_on_the_device": sum(host_only == 0 for _, host_only in by_tier),
        "agents_partly_on_the_host_only": sum(host_only > 0 for _, host_only in by_tier),
        "steps": len(both_ns),
        "steps_with_a_tick": sum(tick_ns > 0 for tick_ns in stopwatch.ticks_ns),
        "virtual_s": round(warp.clock.now_s - begun_s, 3),
        "decisions": {
            name: count - counts_before.get(name, 0)
            for name, count in sorted(planner.log.counts.items())
            if count > counts_before.get(name, 0)
        },
        "step_and_ticks_us": spread_us(both_ns),
        "step_us": spread_us(stopwatch.steps_ns),
        "of_which_sglangs_loads_us": spread_us(stopwatch.loads_ns),
        "without_them_us": spread_us(
            [took - loads for took, loads in zip(both_ns, stopwatch.loads_ns, strict=True)]
        ),
        "rest_of_scheduler_us": spread_us(stopwatch.schedulers_ns),
        "tick_us": spread_us([tick_ns for tick_ns in stopwatch.ticks_ns if tick_ns]),
    }


def measure_memory(load: Load) -> dict[str, Any]:
    """Bytes that the planner keeps an agent, each after a first turn, in its first call, with KV in
    the tree; nobody returns meanwhile.

    Counted is what is allocated by a line of the planner's side of the extension (``SIDES``):
    agent table, residents, working set, calls expected. Not the radix tree, the pools and SGLang's
    own request state; nor what is learnt from ended calls, which has a bound of its own; nor the
    table that the main process has, which is about as large as this one's.
    """
    load = replace(load, **BRIEFLY)
    warp = build(load)
    snapshots: list[tracemalloc.Snapshot] = []

    def phases() -> Iterator[Callable[[], bool]]:
        earlier = Agents(warp, load, 0, load.agents_before)
        earlier.start()
        yield lambda: earlier.all_known
        gc.collect()
        tracemalloc.start(TRACED_FRAMES)
        snapshots.append(tracemalloc.take_snapshot())
        added = Agents(warp, load, load.agents_before, load.agents)
        added.start()
        yield lambda: added.all_known
        gc.collect()
        snapshots.append(tracemalloc.take_snapshot())
        tracemalloc.stop()

    run(warp, phases())
    before, after = snapshots
    kept = {side: 0 for side in SIDES}
    for difference in after.compare_to(before, "traceback"):
        side = side_of([frame.filename for frame in reversed(difference.traceback)])
        if side is not None:
            kept[side] += difference.size_diff
    return {
        "agents": load.agents,
        "bytes_per_agent": round(sum(kept.values()) / load.agents),
        "bytes_per_agent_by_folder": {
            side: round(size / load.agents) for side, size in kept.items()
        },
    }


def side_of(files: Sequence[str]) -> str | None:
    """The folder of the planner's side whose line allocated; None if somebody else's did.

    Args:
        files: of the traceback, the allocating line's first. Code without a file, such as a
            dataclass's constructor, counts for its caller, and so do the libraries'.
    """
    if any(file.endswith("/signals/front_door.py") for file in files):
        return None  # in a server, of the main process
    for file in files:
        parts = Path(file).parts
        if "sglang" in parts:
            return None
        if "tokencake_sglang" in parts:
            folder = parts[len(parts) - parts[::-1].index("tokencake_sglang")]
            return folder if folder in SIDES else None
    return None


def spread_us(values_ns: Sequence[int]) -> dict[str, float]:
    if not values_ns:
        return {}
    return {
        "median": round(statistics.median(values_ns) / 1000, 2),
        "mean": round(statistics.fmean(values_ns) / 1000, 2),
        "p99": round(quantile(values_ns, 0.99) / 1000, 2),
        "max": round(max(values_ns) / 1000, 2),
    }


def median_run(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run whose steps took the median of the runs' means, and what those were."""

    def mean_us(run: dict[str, Any]) -> float:
        return run["step_and_ticks_us"]["mean"]

    ordered = sorted(runs, key=mean_us)
    return {**ordered[(len(ordered) - 1) // 2], "means_us_of_runs": [mean_us(run) for run in runs]}


def too_much(report: dict[str, Any]) -> list[str]:
    """Where a bar is not met."""
    found = [
        f"{name}: {measured['step_and_ticks_us']['mean']} us a step, at most {most} are meant"
        for name, most in MOST_MEAN_US.items()
        if (measured := report["steps"][name])["step_and_ticks_us"]["mean"] > most
    ]
    if (size := report["memory"]["bytes_per_agent"]) > MOST_AGENT_BYTES:
        found.append(f"{size} bytes an agent, at most {MOST_AGENT_BYTES} are meant")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", metavar="FILE", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    load = Load()
    full = replace(
        load, host_tokens=300_000, flags=(*load.flags, "--tokencake-without", "working-set")
    )
    long = replace(
        load,
        prompt=4096,
        pool_tokens=8 * load.pool_tokens,
        host_tokens=8 * load.host_tokens,
    )
    preload()
    measured = {
        NO_AGENTS: (load, 0),
        STALLED: (load, load.agents),
        LONG: (long, long.agents),
        HOST_FULL: (full, full.agents),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in measured}
    for turn in range(RUNS):
        for name, what in measured.items():
            if turn == 0 or name in MOST_MEAN_US:
                runs[name].append(run_in_fork(measure_steps, *what))
    report = {
        "machine": this_machine.description(),
        "load": asdict(load),
        "steps": {name: median_run(of) for name, of in runs.items()},
        "memory": run_in_fork(measure_memory, load),
    }
    text = json.dumps(report, indent=1)
    print(text)
    arguments.output.write_text(text + "\n")
    if missed := too_much(report):
        raise SystemExit("planner_cost: " + "; ".join(missed))


if __name__ == "__main__":
    main()
