"""``tokencake replay``: a trace through several systems in virtual time, side by side."""

import argparse
import gc
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from tokencake_sglang.replay import comparison
from tokencake_sglang.replay.systems import SYSTEMS
from tokencake_sglang.replay.workload import ReplayError, Workload, read

DEFAULT_SYSTEMS = ("hicache", "hicache-lpm", "tokencake")
BYTES_PER_PARAMETER = 2
SPARE_TOKENS = 8
"""Slots that SGLang leaves beside the longest request that it accepts."""
PROGRESS_S = 5.0


class CommandError(Exception):
    """What the person at the terminal has to change; one line or a few."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that the systems have in common."""

    model: str
    hardware: str
    pool_tokens: int
    host_ratio: float
    page_size: int
    chunked_prefill_size: int
    max_running_requests: int
    overlap: bool
    flags: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"systems:{_systems()}"
    add = parser.add_argument
    add("trace", help="a replay file: recorded with --tokencake-record, or made by hand")
    add(
        "--model-config",
        required=True,
        metavar="MODEL",
        help="a config.json, the directory that has one, or a built-in model's name",
    )
    add("--hardware", required=True, help="a profile's name, or the path of a .toml file")
    add(
        "--system",
        nargs="+",
        metavar="NAME",
        default=list(DEFAULT_SYSTEMS),
        help=f"of those below (default: {' '.join(DEFAULT_SYSTEMS)})",
    )
    add("--pool-tokens", type=_positive(int), help="KV slots on the device (default: computed)")
    add(
        "--mem-fraction-static",
        type=_positive(float),
        default=0.85,
        metavar="SHARE",
        help="of the device's memory, weights and KV together (default: %(default)s); for the "
        "default of --pool-tokens",
    )
    add(
        "--host-ratio",
        type=_positive(float),
        default=2.0,
        metavar="RATIO",
        help="host tier in units of the device's (default: %(default)s, SGLang's own)",
    )
    add("--page-size", type=_positive(int), default=16, help="default: %(default)s")
    add("--chunked-prefill-size", type=_positive(int), default=8192, help="default: %(default)s")
    add("--max-running-requests", type=_positive(int), default=256, help="default: %(default)s")
    add("--no-overlap", action="store_true", help="without SGLang's overlap scheduling")
    add(
        "--flags",
        default="",
        metavar='"…"',
        help="further server flags; those of the extension only reach systems that have it",
    )
    add("--jobs", type=_positive(int), help="systems at a time (default: one for each core)")
    add("--json", metavar="FILE", help="write all figures there, too")


def run(arguments: argparse.Namespace) -> int:
    """The command. Returns 0; 1 if a system failed; 2 if something given cannot be used."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        _check_systems(arguments.system)
        workload = load(arguments.trace)
        setting = _setting(arguments)
        _check_lengths(workload, setting.pool_tokens, setting.page_size)
    except CommandError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    names = list(dict.fromkeys(arguments.system))
    outcomes = _run_all(workload, setting, names, arguments.jobs or _cores())
    figures = {name: result["figures"] for name, result in outcomes.items() if "figures" in result}
    if figures:
        print(comparison.table(figures))
        print()
        print(comparison.verdict(figures))
    if arguments.json:
        record = {"trace": arguments.trace, **asdict(setting), "systems": outcomes}
        try:
            Path(arguments.json).write_text(json.dumps(record, indent=1) + "\n")
        except OSError as error:
            print(f"replay: --json: {arguments.json}: {error.strerror}", file=sys.stderr)
            return 2
    for name, result in outcomes.items():
        if "error" in result:
            print(f"replay: {name} failed: {result['error']}", file=sys.stderr)
    return 0 if len(figures) == len(names) else 1


# -- what is given --------------------------------------------------------------------------------


def load(trace: str) -> Workload:
    """Reads a replay file.

    Raises:
        CommandError: it is missing, damaged, empty or in another format.
    """
    try:
        workload = read(trace)
    except ReplayError as error:
        if _is_hash_trace(trace):
            raise CommandError(
                f"{trace}: rows with hash_ids are a Dynamo or Mooncake trace, which is not "
                "accepted: it does not say who waits for whom. tokencake_sglang/replay/FORMAT.md "
                "says how each of its fields is written here"
            ) from None
        hint = ": a replay file begins with a header (tokencake_sglang/replay/FORMAT.md)"
        raise CommandError(f"{error}{hint if f'{trace}:1:' in str(error) else ''}") from None
    except (OSError, EOFError) as error:
        raise CommandError(f"{trace}: {getattr(error, 'strerror', None) or error}") from None
    if not workload.requests:
        raise CommandError(f"{trace}: there is no request in it")
    return workload


def _is_hash_trace(trace: str) -> bool:
    try:
        with open(trace, "rb") as file:
            return b'"hash_ids"' in file.readline()
    except OSError:
        return False


def _check_systems(names: Iterable[str]) -> None:
    for name in names:
        if name not in SYSTEMS:
            raise CommandError(f"--system: no {name!r}; there are{_systems()}")


def _systems() -> str:
    return "".join(f"\n  {name}: {system.what}" for name, system in SYSTEMS.items())


def _setting(arguments: argparse.Namespace) -> Setting:
    from tokencake_sglang.timewarp.hardware import load_hardware_profile
    from tokencake_sglang.timewarp.models import load_model_profile

    try:
        model = load_model_profile(arguments.model_config)
    except (OSError, ValueError) as error:
        raise CommandError(f"--model-config: {error}") from None
    try:
        hardware = load_hardware_profile(arguments.hardware)
    except (OSError, ValueError) as error:
        raise CommandError(f"--hardware: {error}") from None
    pool_tokens = arguments.pool_tokens
    if pool_tokens is None:
        weights = model.parameters * BYTES_PER_PARAMETER
        share = arguments.mem_fraction_static
        if share > 1:
            raise CommandError(f"--mem-fraction-static: expected at most 1, got {share:g}")
        room = hardware.memory_bytes * share - weights
        pool_tokens = int(room // model.kv_bytes_per_token)
        if pool_tokens < arguments.page_size:
            raise CommandError(
                f"--mem-fraction-static: {share:g} of {hardware.name}'s "
                f"{hardware.memory_bytes / 1e9:.0f} GB leaves no room beside {model.name}'s "
                f"weights of {weights / 1e9:.0f} GB; give --pool-tokens, or other hardware"
            )
    try:
        flags = tuple(shlex.split(arguments.flags))
    except ValueError as error:
        raise CommandError(f"--flags: {error}") from None
    return Setting(
        model=arguments.model_config,
        hardware=arguments.hardware,
        pool_tokens=pool_tokens - pool_tokens % arguments.page_size,
        host_ratio=arguments.host_ratio,
        page_size=arguments.page_size,
        chunked_prefill_size=arguments.chunked_prefill_size,
        max_running_requests=arguments.max_running_requests,
        overlap=not arguments.no_overlap,
        flags=flags,
    )


def _check_lengths(workload: Workload, pool_tokens: int, page_size: int) -> None:
    room = pool_tokens - SPARE_TOKENS - page_size
    longest = max(workload.requests, key=lambda r: r.prompt_length + r.output_length)
    too_long = sum(r.prompt_length + r.output_length > room for r in workload.requests)
    if too_long:
        raise CommandError(
            f"request {longest.request_id!r} has {longest.prompt_length} tokens of prompt and "
            f"{longest.output_length} of output, the pool {pool_tokens}: "
            f"{too_long} of {len(workload.requests)} requests do not fit; "
            "give more --pool-tokens, or hardware with more memory"
        )


def flags_for(system: str, flags: Sequence[str]) -> list[str]:
    """The flags that this system understands: the extension's are left out where it is off."""
    has_extension = "--enable-tokencake" in SYSTEMS[system].flags
    taken: list[str] = []
    wanted = True
    for word in flags:
        if word.startswith("--"):
            wanted = has_extension or not word.startswith("--tokencake-")
        if wanted:
            taken.append(word)
    return taken


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
        return value

    parse.__name__ = "number"
    return parse


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- runs -----------------------------------------------------------------------------------------


def _run_all(
    workload: Workload, setting: Setting, names: Sequence[str], jobs: int
) -> dict[str, dict[str, Any]]:
    from tokencake_sglang.timewarp.forks import ChildFailed, map_in_forks

    jobs = min(jobs, len(names))
    _say(
        f"{len(workload.requests)} requests of {len(workload.applications)} applications, "
        f"{setting.pool_tokens} KV slots; {len(names)} systems, {jobs} at a time"
    )

    def done(index: int, result: dict[str, Any]) -> None:
        _say(f"{names[index]}: {'failed' if 'error' in result else 'done'}")

    runs = [(workload, setting, name) for name in names]
    try:
        results = map_in_forks(run_one, runs, processes=jobs, on_result=done)
    except ChildFailed as error:
        reason = str(error).strip().splitlines()[-1]
        return {name: {"error": reason} for name in names}
    finally:
        gc.unfreeze()  # what forks.py froze; libraries complain of it at the end otherwise
    return dict(zip(names, results, strict=True))


def run_one(workload: Workload, setting: Setting, name: str) -> dict[str, Any]:
    """One system's run, in a process of its own.

    Returns:
        ``figures`` and ``real_s``, or ``error``.
    """
    from tokencake_sglang.replay.driver import Replay
    from tokencake_sglang.replay.figures import figures
    from tokencake_sglang.timewarp.cost import CostModel
    from tokencake_sglang.timewarp.engine import Stuck, TimeWarp
    from tokencake_sglang.timewarp.hardware import load_hardware_profile
    from tokencake_sglang.timewarp.models import load_model_profile

    os.dup2(2, 1)  # what libraries print is not the command's output
    warnings.simplefilter("ignore")
    system = SYSTEMS[name]
    started_s = time.perf_counter()
    try:
        warp = TimeWarp(
            CostModel(
                load_model_profile(setting.model, BYTES_PER_PARAMETER),
                load_hardware_profile(setting.hardware),
            ),
            pool_tokens=setting.pool_tokens,
            host_tokens=int(setting.host_ratio * setting.pool_tokens) if system.host_tier else 0,
            page_size=setting.page_size,
            chunked_prefill_tokens=setting.chunked_prefill_size,
            max_running_requests=setting.max_running_requests,
            overlap=setting.overlap,
            flags=(*system.flags, *flags_for(name, setting.flags)),
        )
        replay = Replay(workload, warp, priorities=system.priorities)
        warp.observers.append(_Progress(name, len(workload.requests)))
        replay.run()
    except SystemExit as error:  # SGLang and the extension refuse by it
        return {"error": f"the server would not start: {error.code}"}
    except Stuck as error:
        return {"error": str(error)}
    judged = msgspec.to_builtins(figures(replay))
    return {"figures": judged, "real_s": round(time.perf_counter() - started_s, 3)}


class _Progress:
    """Says now and then how far a run has come."""

    def __init__(self, name: str, requests: int) -> None:
        self._name, self._requests = name, requests
        self._next_s = time.monotonic() + PROGRESS_S

    def __call__(self, warp: Any) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + PROGRESS_S
            _say(
                f"{self._name}: {warp.totals.finished} of {self._requests} requests, "
                f"{warp.clock.now_s:,.0f} s of virtual time"
            )


def _say(text: str) -> None:
    print(f"replay: {text}", file=sys.stderr, flush=True)
