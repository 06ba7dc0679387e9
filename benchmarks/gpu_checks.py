"""The checks of ``gpu_checklist``; each runs in a process of its own, around one real scheduler.

python -m benchmarks.gpu_checks race '{"device": "cuda", ...}' result.json
"""

import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

DELAY_VARIABLE = "SGLANG_TEST_HICACHE_H2D_DELAY_CYCLES"
"""SGLang's own test switch: GPU cycles that every layer of a load sleeps before it is copied."""

SLOW_LINK_CYCLES = 2_000_000
"""About a millisecond a layer: a load that no forward pass can overtake."""

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One scheduler and what is done with it. Lengths are tokens.

    ``pieces`` are the largest uploads started at once; ``model`` overrides the tiny model's config.
    """

    device: str
    model: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    io_backend: str = "direct"
    layout: str = "layer_first"
    page_size: int = 1
    kv_tokens: int = 65_536
    chunk: int = 8192
    prefix: int = 8192
    suffix: int = 64
    output: int = 8
    pieces: tuple[int, ...] = (8192, 2048, 512)
    repetitions: int = 20
    prefills: tuple[int, ...] = (512, 2048, 8192)
    decodes: tuple[tuple[int, int], ...] = ((1, 1024), (8, 1024), (32, 1024), (1, 8192))
    """(requests, tokens of context each)"""
    copy_bytes: int = GIB


class Arrival(StrEnum):
    """When the request comes, seen from the upload of the prefix it begins with."""

    AFTER = "after the upload"
    LAST_PIECE = "during the last piece"
    FIRST_PIECE = "during the first piece"


class Trip(NamedTuple):
    """A prefix swapped out and in again, and the request that then reads it."""

    arrival: Arrival
    piece: int
    slow_link: bool = False


class Outcome(NamedTuple):
    """``overlapped``: the prefill was formed while the load it reads was in flight."""

    tokens: list[int]
    overlapped: bool
    bytes_equal: bool


class Rig:
    """A scheduler with the extension, one agent, and its prefix: out, in, and a request on it."""

    def __init__(self, setup: Setup, directory: Path) -> None:
        from tests.scheduler_harness import SchedulerHarness
        from tokencake_sglang.agents.identity import AgentTag

        self.setup = setup
        self.harness = SchedulerHarness(
            directory,
            "--enable-tokencake",
            *("--device", setup.device, "--chunked-prefill-size", str(setup.chunk)),
            *("--dtype", "float32" if setup.device == "cpu" else "bfloat16"),
            *("--hicache-io-backend", setup.io_backend, "--hicache-mem-layout", setup.layout),
            *("--max-running-requests", "64"),
            *setup.flags,
            kv_tokens=setup.kv_tokens,
            page_size=setup.page_size,
            model=setup.model,
        )
        self.cache = self.harness.cache
        self.tag = AgentTag(agent="checked", application="checklist")
        self.rng = random.Random(1)
        self.prefix = self.tokens(setup.prefix)
        self.prefix_leaf = -1
        self.overlaps = 0
        self.guarded = True
        self._watch_guard()

    def tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(3, 1000) for _ in range(count)]

    def settings(self) -> dict[str, Any]:
        """What SGLang made of the flags."""
        args = self.harness.scheduler.server_args
        names = ("hicache_io_backend", "hicache_mem_layout", "attention_backend", "page_size")
        return {
            **{name: getattr(args, name) for name in names},
            "kv_bytes_per_token": self.kv_bytes_per_token,
        }

    @property
    def kv_bytes_per_token(self) -> int:
        return int(self.cache.cache_controller.mem_pool_host.size_per_token)

    def suffixes(self, count: int) -> list[list[int]]:
        """Different from their first token on, so that no request matches another's."""
        assert count < 1000
        return [[3 + number, *self.tokens(self.setup.suffix - 1)] for number in range(count)]

    # -- the agent's prefix -------------------------------------------------------------------

    def compute_prefix(self) -> None:
        """Anew, on an empty cache; with its host copy."""
        self.harness.flush()
        self.harness.generate(self.prefix, 1, self.tag)
        resident = self.harness.planner.residents[self.tag.key]
        self.prefix_leaf = resident.leaf_id
        device, _ = self.cache.tokens_by_tier(self.prefix_leaf)
        assert device == self.setup.prefix, f"the prefix's path has {device} tokens"
        self.await_insured(self.prefix_leaf)

    def prefix_bytes(self) -> list[Any]:
        """The prefix's KV, tensor by tensor, in path order."""
        slots = self.cache.path_device_indices(self.prefix_leaf)
        return [tensor[slots].clone() for tensor in self._kv_tensors()]

    def swap_out(self) -> None:
        """Releases the whole tree below the prefix and the prefix; then nothing is left to see."""
        for leaf in self._device_leaves():
            self.await_insured(leaf)
            self.cache.release(leaf)
        device, host = self.cache.tokens_by_tier(self.prefix_leaf)
        assert (device, host) == (0, self.setup.prefix), f"{device} tokens stayed on the device"
        assert self.cache.full_evictable_size() == 0, "something else is still on the device"
        self._poison()

    def upload(self, piece: int, stop_in: Arrival) -> None:
        """Uploads the prefix; returns at once with the first or the last piece in flight."""
        while self.cache.tokens_by_tier(self.prefix_leaf)[1]:
            assert self.cache.upload(self.prefix_leaf, piece), "the upload was refused"
            remaining = self.cache.tokens_by_tier(self.prefix_leaf)[1]
            if stop_in is Arrival.FIRST_PIECE or (stop_in is Arrival.LAST_PIECE and remaining == 0):
                return
            self.await_upload()

    def await_upload(self) -> None:
        self._poll(lambda: not self.cache.is_uploading(self.prefix_leaf), "an upload")

    def await_insured(self, leaf: int) -> None:
        self.cache.insure(leaf)
        self._poll(lambda: self.cache.is_insured(leaf), "a backup")

    def ask(self, suffix: list[int]) -> list[int]:
        """The output of a request that begins with the prefix."""
        rid = self.harness.submit(self.prefix + suffix, self.setup.output, self.tag)
        output = self.harness.run(rid)[0]
        assert self.harness.cached_tokens[rid] == self.setup.prefix, (
            f"{self.harness.cached_tokens[rid]} tokens were cached, not the prefix's"
        )
        return output

    def trip(self, trip: Trip, suffix: list[int], expected: Iterable[Any]) -> Outcome:
        import torch

        self.swap_out()
        if trip.slow_link:
            os.environ[DELAY_VARIABLE] = str(SLOW_LINK_CYCLES)
        overlaps = self.overlaps
        self.upload(trip.piece, trip.arrival)
        tokens = self.ask(suffix)
        os.environ.pop(DELAY_VARIABLE, None)
        self.await_upload()
        synchronize()
        equal = all(
            torch.equal(now, then) for now, then in zip(self.prefix_bytes(), expected, strict=True)
        )
        return Outcome(tokens, self.overlaps > overlaps, equal)

    # -- inside -------------------------------------------------------------------------------

    def _watch_guard(self) -> None:
        """Counts the prefills that had to wait; without the guard they do not."""
        consumer_index_for = self.cache.consumer_index_for

        def watched(reqs: Iterable[Any]) -> int:
            index = consumer_index_for(reqs)
            self.overlaps += index >= 0
            return index if self.guarded else -1

        self.cache.consumer_index_for = watched

    def _kv_tensors(self) -> list[Any]:
        pool = self.harness.scheduler.token_to_kv_pool_allocator.get_kvcache()
        return [*pool.k_buffer, *pool.v_buffer]

    def _device_leaves(self) -> list[int]:
        """Every node of the prefix's tree without device nodes below it; deepest first."""
        leaves = []
        nodes = [self.cache.tree_core.node_by_id(self.prefix_leaf)]
        while nodes:
            node = nodes.pop()
            children = [child for child in node.children.values() if not child.evicted]
            nodes += children
            if not children and not node.evicted:
                leaves.append(node.id)
        return leaves

    def _poison(self) -> None:
        """Noise in every slot: whoever reads a slot before its bytes arrive gets another answer."""
        synchronize()
        for tensor in self._kv_tensors():
            tensor.normal_(0.0, 8.0)
        synchronize()

    def _poll(self, done: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
        deadline = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < deadline, f"{what} did not end within {limit_s:g} s"
            self.cache.check_hicache_events()


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


# -- tokens after a trip ---------------------------------------------------------------------------


def race(rig: Rig) -> dict[str, Any]:
    """Requests that read a prefix while it is being uploaded, guarded and, to compare, unguarded."""
    setup = rig.setup
    arrivals = (Arrival.LAST_PIECE, Arrival.FIRST_PIECE)
    speeds = (False, True) if setup.device == "cuda" else (False,)
    kinds = [
        Trip(arrival, piece, slow)
        for slow, arrival, piece in itertools.product(speeds, arrivals, setup.pieces)
        if arrival is Arrival.LAST_PIECE or piece < setup.prefix
    ]
    return {
        "kinds": _compare(rig, kinds, guards=(True, False)),
        "kv_bytes_per_token": rig.kv_bytes_per_token,
        "settings": rig.settings(),
    }


def round_trips(rig: Rig) -> dict[str, Any]:
    """Requests that read a prefix after it has been uploaded."""
    kinds = [Trip(Arrival.AFTER, piece) for piece in rig.setup.pieces]
    return {"kinds": _compare(rig, kinds, guards=(True,)), "settings": rig.settings()}


def _compare(rig: Rig, kinds: list[Trip], guards: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Every kind of trip, ``repetitions`` times, each against the same request without a trip."""
    plan = [
        (kind, guarded)
        for _ in range(rig.setup.repetitions)
        for kind in kinds
        for guarded in guards
    ]
    suffixes = rig.suffixes(len(plan))
    rig.compute_prefix()
    expected = rig.prefix_bytes()
    outcomes = []
    for (kind, guarded), suffix in zip(plan, suffixes, strict=True):
        rig.guarded = guarded
        outcomes.append(rig.trip(kind, suffix, expected))
    rig.guarded = True
    # The same prefix again, never swapped out: its KV has to be the same for the comparison to hold.
    _check_deterministic(rig, expected, suffixes[0])
    references = [rig.ask(suffix) for suffix in suffixes]
    rows = []
    for kind in kinds:
        row = {"arrival": kind.arrival, "piece_tokens": kind.piece, "slow_link": kind.slow_link}
        for guarded in guards:
            cases = [
                (outcome, reference)
                for step, outcome, reference in zip(plan, outcomes, references, strict=True)
                if step == (kind, guarded)
            ]
            row["guarded" if guarded else "unguarded"] = {
                "trips": len(cases),
                "overlapped": sum(outcome.overlapped for outcome, _ in cases),
                "wrong_outputs": sum(outcome.tokens != reference for outcome, reference in cases),
                "wrong_bytes": sum(not outcome.bytes_equal for outcome, _ in cases),
            }
        rows.append(row)
    return rows


def _check_deterministic(rig: Rig, expected: list[Any], suffix: list[int]) -> None:
    import torch

    answers = []
    for _ in range(2):
        rig.compute_prefix()
        assert all(map(torch.equal, rig.prefix_bytes(), expected)), (
            "inconclusive: this setup does not compute the same KV twice"
        )
        answers.append(rig.ask(suffix))
    assert answers[0] == answers[1], "inconclusive: this setup does not give the same tokens twice"
    rig.compute_prefix()


# -- speeds ----------------------------------------------------------------------------------------


def link(rig: Rig) -> dict[str, Any]:
    """How fast KV gets to the host and back: torch's copies as the ceiling, then HiCache's own."""
    tokens = rig.setup.prefix
    backups, uploads = [], []
    rig.cache.write_through_threshold = 1 << 30  # nothing is copied before it is timed
    for _ in range(rig.setup.repetitions):
        rig.harness.flush()
        rig.harness.generate(rig.prefix, 1, rig.tag)
        rig.prefix_leaf = rig.harness.planner.residents[rig.tag.key].leaf_id
        synchronize()
        started = time.perf_counter()
        rig.await_insured(rig.prefix_leaf)
        backups.append(time.perf_counter() - started)
        rig.swap_out()
        started = time.perf_counter()
        rig.upload(tokens, Arrival.AFTER)
        uploads.append(time.perf_counter() - started)

    def figures(seconds: list[float]) -> dict[str, float]:
        tokens_per_s = tokens / statistics.median(seconds)
        return {
            "tokens_per_s": tokens_per_s,
            "bytes_per_s": tokens_per_s * rig.kv_bytes_per_token,
            "median_ms": statistics.median(seconds) * 1e3,
        }

    return {
        "tokens": tokens,
        "hicache_backup": figures(backups),
        "hicache_upload": figures(uploads),
        "torch_bytes_per_s": _torch_copies(rig.setup),
        "settings": rig.settings(),
    }


def _torch_copies(setup: Setup) -> dict[str, float]:
    import torch

    on_gpu = setup.device == "cuda"
    host = torch.zeros(setup.copy_bytes, dtype=torch.uint8, pin_memory=on_gpu)
    device = torch.zeros(setup.copy_bytes, dtype=torch.uint8, device=setup.device)
    speeds = {}
    for name, target, source in (("to_host", host, device), ("to_device", device, host)):
        times = []
        for _ in range(6):
            synchronize()
            started = time.perf_counter()
            target.copy_(source, non_blocking=True)
            synchronize()
            times.append(time.perf_counter() - started)
        speeds[name] = setup.copy_bytes / statistics.median(times[1:])
    return speeds


def model_speed(rig: Rig) -> dict[str, Any]:
    """Calibration: prefill by length, and a decode step by requests and context."""
    prefills = {}
    for tokens in rig.setup.prefills:
        seconds = []
        for _ in range(4):
            rig.harness.flush()
            rid = rig.harness.submit(rig.tokens(tokens), 1)
            synchronize()
            started = time.perf_counter()
            rig.harness.run(rid)
            synchronize()
            seconds.append(time.perf_counter() - started)
        median_s = statistics.median(seconds[1:])
        prefills[str(tokens)] = {"ms": median_s * 1e3, "tokens_per_s": tokens / median_s}
    decodes = []
    for requests, context in rig.setup.decodes:
        decodes.append(
            {
                "requests": requests,
                "context_tokens": context,
                "step_ms": _decode_step_s(rig, requests, context) * 1e3,
            }
        )
    return {"prefill": prefills, "decode": decodes, "settings": rig.settings()}


def _decode_step_s(rig: Rig, requests: int, context: int) -> float:
    """Median of sixteen steps in which all ``requests`` decode."""
    harness = rig.harness
    harness.flush()
    # Prefilled one after the other: the first ones decode meanwhile, so they may do so for long.
    steps = 24 + 4 * requests + requests * context // rig.setup.chunk
    rids = [harness.submit(rig.tokens(context), steps) for _ in range(requests)]

    def all_decode() -> bool:
        batch = harness.scheduler.last_batch
        return (
            not harness.scheduler.waiting_queue
            and batch is not None
            and batch.forward_mode.is_decode()
            and len(batch.reqs) == requests
        )

    for _ in range(1000):
        harness.step()
        if all_decode():
            break
    else:
        raise AssertionError(f"{requests} requests of {context} tokens never decoded together")
    times = []
    for _ in range(16):
        synchronize()
        started = time.perf_counter()
        harness.step()
        synchronize()
        times.append(time.perf_counter() - started)
        assert all_decode()
    harness.run(*rids)
    return statistics.median(times)


CHECKS: dict[str, Callable[[Rig], dict[str, Any]]] = {
    "race": race,
    "round_trips": round_trips,
    "link": link,
    "model_speed": model_speed,
}


def main() -> None:
    check, settings, result = sys.argv[1:]
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(settings).items()
    }
    with tempfile.TemporaryDirectory() as directory:
        rig = Rig(Setup(**values), Path(directory))
        outcome = CHECKS[check](rig)
    Path(result).write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
