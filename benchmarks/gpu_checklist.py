"""Everything that only a GPU can show, in one run: a verdict or a figure for each, and a result file.

    python -m benchmarks.gpu_checklist            # writes benchmarks/results/gpu/<machine>.json

Tokens are right while an upload overlaps a forward pass; bytes and tokens survive every way that
HiCache can copy them; how fast the link, a prefill and a decode step are; and the demonstration on a
model of real size. Weights are seeded noise. Ends with status 1 on a FAIL, and 2 without a GPU.
"""

import argparse
import itertools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks import GIB, Setup

RESULTS = Path(__file__).parent / "results" / "gpu"
SERVER_FLAGS = "--attention-backend triton --sampling-backend pytorch --disable-cuda-graph"
WAYS_TO_COPY = (
    # (--hicache-io-backend, --hicache-mem-layout)
    ("kernel", "page_first"),
    ("kernel", "layer_first"),
    ("direct", "page_first_direct"),
    ("direct", "layer_first"),
)
PAGE_SIZES = (1, 16)
CHECK_LIMIT_S = 900

DEMO_ARGUMENTS = ("--words", "8")
DEMO_FLAGS = (
    "--dtype bfloat16 --max-total-tokens 16384 --hicache-ratio 2 --max-running-requests 8 "
    "--chunked-prefill-size 4096"
)
"""The demo's own settings in bf16, eight times as large."""

DEMO_VOCABULARY = 49152
"""Of the demo's tokenizer."""

MODELS: dict[str, dict[str, Any]] = {
    # The shapes of Llama 3.1 8B and Llama 3.2 1B, but for the vocabulary.
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": DEMO_VOCABULARY,
        "torch_dtype": "bfloat16",
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": DEMO_VOCABULARY,
        "torch_dtype": "bfloat16",
    },
}


class Verdict(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    FIGURE = "figure"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Row:
    """One line of the table. ``details`` only go into the result file."""

    check: str
    verdict: Verdict
    says: str
    details: dict[str, Any] = field(default_factory=dict)


class CheckFailed(Exception):
    """The check's process ended without a result: the last it said."""


# -- checks in processes of their own ----------------------------------------------------------------


def measure(check: str, setup: Setup) -> dict[str, Any]:
    """Raises:
    CheckFailed: with the last line of the process's complaint.
    """
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        command = [sys.executable, "-m", "benchmarks.gpu_checks"]
        command += [check, json.dumps(asdict(setup)), str(result)]
        return json.loads(_finished(command, result))


def _finished(command: Sequence[str], result: Path, statuses: tuple[int, ...] = (0,)) -> str:
    """Runs the command and returns the text of the file it wrote."""
    try:
        child = subprocess.run(
            command,
            env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CHECK_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"not finished after {CHECK_LIMIT_S} s") from None
    if child.returncode not in statuses or not result.is_file():
        print(child.stdout[-6000:], file=sys.stderr)
        lines = [line for line in child.stdout.splitlines() if line.strip()]
        raise CheckFailed(lines[-1].strip() if lines else f"status {child.returncode}")
    return result.read_text()


def check_race(setup: Setup) -> Iterator[Row]:
    """Tokens while a load is in flight; and whether the check would have seen wrong ones."""
    outcome = measure("race", setup)
    name = f"race, {setup.io_backend}"
    overlapped = 0
    for kind in outcome["kinds"]:
        guarded = kind["guarded"]
        overlapped += guarded["overlapped"]
        where = f"{kind['arrival']} of {kind['piece_tokens']}"
        yield Row(
            f"{name}, {where}" + (", slow link" if kind["slow_link"] else ""),
            _passes(guarded),
            f"{guarded['wrong_outputs']} of {guarded['trips']} outputs wrong, "
            f"{guarded['overlapped']} waited for the load",
            kind,
        )
    unguarded = [kind["unguarded"] for kind in outcome["kinds"]]
    yield Row(
        f"{name}, guard switched off",
        Verdict.FIGURE,
        f"{sum(case['wrong_outputs'] for case in unguarded)} of "
        f"{sum(case['trips'] for case in unguarded)} outputs wrong, "
        f"{sum(case['overlapped'] for case in unguarded)} did not wait for the load",
        {"settings": outcome["settings"]},
    )
    if setup.device == "cuda":
        # A race that never happened proves nothing.
        yield Row(
            f"{name}, loads were in flight",
            Verdict.PASS if overlapped else Verdict.FAIL,
            f"{overlapped} prefills met a load in flight",
        )


def check_round_trips(setup: Setup) -> Iterator[Row]:
    outcome = measure("round_trips", setup)
    cases = [kind["guarded"] for kind in outcome["kinds"]]
    total = {name: sum(case[name] for case in cases) for name in cases[0]}
    yield Row(
        _round_trip_name(setup),
        _passes(total),
        f"{total['trips']} trips, {total['wrong_bytes']} with wrong bytes, "
        f"{total['wrong_outputs']} with wrong outputs",
        outcome,
    )


def _round_trip_name(setup: Setup) -> str:
    return f"round trip, {setup.io_backend}/{setup.layout}, page {setup.page_size}"


def _passes(case: dict[str, int]) -> Verdict:
    return Verdict.FAIL if case["wrong_outputs"] or case["wrong_bytes"] else Verdict.PASS


def check_link(setup: Setup) -> Iterator[Row]:
    outcome = measure("link", setup)
    for way in ("to_host", "to_device"):
        speed = outcome["torch_bytes_per_s"][way] / 1e9
        size_mib = setup.copy_bytes >> 20
        yield Row(f"link, torch copy {way}", Verdict.FIGURE, f"{speed:.1f} GB/s for {size_mib} MiB")
    for way in ("backup", "upload"):
        figures = outcome[f"hicache_{way}"]
        yield Row(
            f"link, HiCache {way} ({setup.io_backend}/{setup.layout})",
            Verdict.FIGURE,
            f"{figures['bytes_per_s'] / 1e9:.1f} GB/s, {figures['tokens_per_s']:.0f} tokens/s, "
            f"{figures['median_ms']:.1f} ms for {outcome['tokens']} tokens",
            outcome,
        )


def check_model_speed(setup: Setup) -> Iterator[Row]:
    outcome = measure("model_speed", setup)
    for tokens, figures in outcome["prefill"].items():
        says = f"{figures['tokens_per_s']:.0f} tokens/s, {figures['ms']:.1f} ms"
        yield Row(f"prefill of {tokens} tokens", Verdict.FIGURE, says, outcome["settings"])
    for figures in outcome["decode"]:
        yield Row(
            f"decode, {figures['requests']} x {figures['context_tokens']} tokens",
            Verdict.FIGURE,
            f"{figures['step_ms']:.2f} ms a step",
            figures,
        )


# -- the demonstration -------------------------------------------------------------------------------


def check_demo(model: dict[str, Any], arguments: Sequence[str]) -> Iterator[Row]:
    """The demo on a model of real size. A row says so where something it needs is missing.

    Different outputs are no FAIL here: they are greedy ones of bf16 logits, which depend on who
    shares a batch, and the runs that are compared batch differently.
    """
    if find_spec("examples.code_writer") is None:
        yield Row("demo", Verdict.SKIPPED, "there is no examples.code_writer")
        return
    from examples.smollm2 import ensure_model
    from tests.models import tiny_llama

    try:
        tokenizer = ensure_model()
    except (ImportError, OSError) as error:
        yield Row("demo", Verdict.SKIPPED, f"no tokenizer for its model: {error}")
        return
    with tempfile.TemporaryDirectory() as directory:
        config = tiny_llama(Path(directory) / "model", **model)
        outcome = run_demo(
            [
                *("--model-path", str(config), "--tokenizer-path", str(tokenizer)),
                *("--load-format", "dummy", *arguments),
            ],
            Path(directory) / "demo.json",
        )
    verdict = outcome.get("verdict") or ["finished"]
    yield Row("demo", Verdict.FIGURE, "; ".join(verdict), outcome)


def run_demo(arguments: Sequence[str], output: Path) -> dict[str, Any]:
    """Runs ``examples.code_writer`` with these arguments; returns what it wrote to ``output``.

    Raises:
        CheckFailed: when it wrote nothing, or ended with another status than its own 0 and 1.
    """
    command = [sys.executable, "-m", "examples.code_writer", *arguments, "--output", str(output)]
    return json.loads(_finished(command, output, statuses=(0, 1)))


# -- the run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How checks are run; ``ways[0]`` is how KV is copied wherever no ways are compared."""

    base: Setup
    ways: tuple[tuple[str, str], ...]
    page_sizes: tuple[int, ...]
    model: dict[str, Any]
    demo_arguments: tuple[str, ...]

    def rows(self, check: str) -> Iterator[Row]:
        """Runs one of CHECKS."""
        backend, layout = self.ways[0]
        default = replace(self.base, io_backend=backend, layout=layout)
        match check:
            case "race":
                for way in self._first_and_last_way():
                    raced = replace(default, io_backend=way[0], layout=way[1])
                    yield from _rows(f"race, {way[0]}/{way[1]}", check_race, raced)
            case "round-trips":
                fewer = max(1, self.base.repetitions // 4)
                for way, page_size in itertools.product(self.ways, self.page_sizes):
                    copied = replace(default, io_backend=way[0], layout=way[1])
                    paged = replace(copied, page_size=page_size, repetitions=fewer)
                    yield from _rows(_round_trip_name(paged), check_round_trips, paged)
            case "link":
                for way in self._first_and_last_way():
                    linked = replace(default, io_backend=way[0], layout=way[1], repetitions=5)
                    yield from _rows(f"link, {way[0]}/{way[1]}", check_link, linked)
            case "speed":
                yield from _rows("model speed", check_model_speed, default)
            case "demo":
                yield from _rows("demo", check_demo, self.model, self.demo_arguments)

    def _first_and_last_way(self) -> list[tuple[str, str]]:
        """One of each backend."""
        return list(dict.fromkeys((self.ways[0], self.ways[-1])))


CHECKS = ("race", "round-trips", "link", "speed", "demo")


def _rows(name: str, check: Any, *arguments: Any) -> Iterator[Row]:
    """The check's rows; a check that breaks off is a FAIL."""
    try:
        yield from check(*arguments)
    except CheckFailed as failure:
        yield Row(name, Verdict.FAIL, str(failure))


def machine(device: str) -> dict[str, Any]:
    import torch

    described: dict[str, Any] = {"device": device, "python": platform.python_version()}
    for package in ("torch", "sglang", "sglang-kernel", "flashinfer-python", "tokencake-sglang"):
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            described[package] = None
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {
            "name": torch.cuda.get_device_name(),
            "memory_gib": round(properties.total_memory / GIB, 1),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    else:
        described["name"] = "CPU"
    return described


def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.check_output(query, text=True).splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _plan(args: argparse.Namespace) -> Plan:
    demo_arguments = tuple(shlex.split(args.demo_arguments))
    if args.device == "cpu":
        base = Setup(
            device="cpu",
            flags=("--hicache-ratio", "4"),
            kv_tokens=2048,
            chunk=512,
            prefix=512,
            suffix=32,
            output=6,
            pieces=(512, 128),
            repetitions=2,
            prefills=(64, 256),
            decodes=((1, 64), (3, 64)),
            copy_bytes=16 << 20,
        )
        return Plan(
            base, (WAYS_TO_COPY[-1],), (16,), {"vocab_size": DEMO_VOCABULARY}, demo_arguments
        )
    import torch

    free_bytes, _ = torch.cuda.mem_get_info()
    name = args.model or ("8b" if free_bytes > 40 * GIB else "1b")
    model = MODELS[name]
    head = model["hidden_size"] // model["num_attention_heads"]
    kv_bytes = 4 * model["num_hidden_layers"] * model["num_key_value_heads"] * head
    base = Setup(
        device="cuda",
        model=model,
        flags=("--hicache-ratio", "2", *shlex.split(args.server_flags)),
        kv_tokens=args.kv_tokens or min(65_536, int(0.35 * free_bytes / kv_bytes) // 64 * 64),
        repetitions=args.repetitions,
    )
    demo_flags = f"{DEMO_FLAGS} {args.server_flags}"
    demo_arguments = ("--server-flags", demo_flags, *DEMO_ARGUMENTS, *demo_arguments)
    return Plan(base, WAYS_TO_COPY, PAGE_SIZES, model, demo_arguments)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CHECKS,
        default=CHECKS,
        help="some checks; the file keeps the others'",
    )
    parser.add_argument("--model", choices=["8b", "1b"], help="model size (default: by memory)")
    parser.add_argument("--kv-tokens", type=int, help="size of the KV pool (default: by memory)")
    parser.add_argument("--repetitions", type=int, default=20, help="of every kind of race (20)")
    parser.add_argument("--server-flags", default=SERVER_FLAGS, help=f"default: {SERVER_FLAGS}")
    parser.add_argument("--demo-arguments", default="", help="further arguments of the demo")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/gpu/<machine>.json"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help=argparse.SUPPRESS)
    args = parser.parse_args()

    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_checklist: there is no GPU that torch can use; nothing was checked")
        return 2
    described = machine(args.device)
    slug = re.sub(r"[^a-z0-9]+", "-", described["name"].lower()).strip("-")
    output = args.output or RESULTS / f"{slug}.json"
    plan = _plan(args)
    print(", ".join(f"{name} {value}" for name, value in described.items() if value))
    lines = failed = 0
    checks = _earlier(output, described)
    for check in args.only:
        checks[check] = {"setup": asdict(plan.base), "seconds": 0, "rows": []}
        started = time.monotonic()
        for row in plan.rows(check):
            lines, failed = lines + 1, failed + (row.verdict is Verdict.FAIL)
            print(f"{row.verdict:<8} {row.check:<52} {row.says}", flush=True)
            checks[check]["rows"].append(asdict(row))
            checks[check]["seconds"] = round(time.monotonic() - started)
            # After every row: what a run that is cut short has found is kept.
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps({"machine": described, "checks": checks}, indent=2) + "\n")
    print(f"{lines} lines, {failed} failed; written to {os.path.relpath(output)}")
    return 1 if failed else 0


def _earlier(output: Path, described: dict[str, Any]) -> dict[str, Any]:
    """The checks that an earlier run on the same machine and software left in the file."""
    try:
        result = json.loads(output.read_text())
    except FileNotFoundError:
        return {}
    return result["checks"] if result.get("machine") == described else {}


if __name__ == "__main__":
    sys.exit(main())
