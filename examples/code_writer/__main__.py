"""`python -m examples.code_writer`: stock SGLang with HiCache against SGLang with TokenCake.

Runs one program three times, each time against a fresh server: stock under `--schedule-policy fcfs`,
stock under `lpm`, and with `--enable-tokencake`. Ends with status 1 when the outputs differ.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from examples.code_writer.application import run_all
from examples.code_writer.measure import MeasuringEndpoint, Run, differing_outputs, figures
from examples.code_writer.report import cautions, side_by_side, verdict
from examples.code_writer.scenario import Scenario
from examples.code_writer.server import Server
from examples.smollm2 import ensure_model

SERVER_FLAGS = (
    "--dtype float32 --max-total-tokens 1536 --hicache-ratio 2 --max-running-requests 8 "
    "--chunked-prefill-size 512"
)
"""The same for every server. The pool holds about a third of what the applications compute."""

STOCK = {
    "stock, fcfs": "--enable-hierarchical-cache --schedule-policy fcfs",
    "stock, lpm": "--enable-hierarchical-cache --schedule-policy lpm",
}
EXTENSION = {"TokenCake": "--enable-tokencake"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    scenario = Scenario(
        applications=options.applications,
        output_tokens=options.output_tokens,
        words=options.words,
        stagger_s=options.stagger,
    )
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log has room for the table
    started_s = time.monotonic()
    flags = _server_flags(options)
    tokenizer = Tokenizer.from_file(str(_tokenizer_path(options) / "tokenizer.json"))
    logs = Path(tempfile.mkdtemp(prefix="code-writer-"))
    console.print(
        f"{scenario.applications} applications, {scenario.turns} turns; "
        f"servers: {shlex.join(flags)}; their logs: {logs}"
    )
    extension = {name: f"{own} {options.extension_flags}" for name, own in EXTENSION.items()}
    variants = {**STOCK, **extension}
    runs = []
    with Progress(
        TextColumn("{task.description:34}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} turns"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        for label, extra in variants.items():
            runs.append(_run(label, [*flags, *extra.split()], scenario, tokenizer, logs, progress))
    measured = {run.label: figures(run) for run in runs}
    differences = differing_outputs(runs)

    stock = {label: measured[label] for label in STOCK}
    ours = {label: measured[label] for label in EXTENSION}
    lines = verdict(stock, *ours.values())
    console.print(side_by_side(stock, ours))
    for line in lines:
        console.print(line)
    warnings = cautions(measured)
    for warning in warnings:
        console.print(f"[yellow]{warning}")
    for difference in differences:
        console.print(f"[red]outputs differ: {difference}")
    if not differences:
        console.print(f"All {scenario.turns} outputs are identical, token by token, in every run.")
    total_s = time.monotonic() - started_s
    console.print(f"Took {total_s:.0f} s.")
    if options.output:
        record = {
            "configuration": {
                "scenario": asdict(scenario),
                "server_flags": shlex.join(
                    Path(flag).name if "/" in flag else flag for flag in flags
                ),
                "variants": variants,
            },
            "environment": _environment(),
            "total_s": total_s,
            "figures": measured,
            "outputs_identical": not differences,
            "differences": differences,
            "verdict": lines,
            "cautions": warnings,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if differences else 0


def _parser() -> argparse.ArgumentParser:
    default = Scenario()
    parser = argparse.ArgumentParser(prog="examples.code_writer", description=__doc__)
    parser.add_argument("--applications", type=int, default=default.applications)
    parser.add_argument("--output-tokens", type=int, default=default.output_tokens)
    parser.add_argument(
        "--words", type=float, default=default.words, help="scales everything the agents read"
    )
    parser.add_argument(
        "--stagger", type=float, default=default.stagger_s, help="seconds between applications"
    )
    parser.add_argument("--model-path", type=Path, help="default: SmolLM2-135M-Instruct")
    parser.add_argument("--tokenizer-path", type=Path, help="default: the model's")
    parser.add_argument("--load-format", help="'dummy' for a model's configuration without weights")
    parser.add_argument(
        "--server-flags", default=SERVER_FLAGS, help=f"of every server; default: {SERVER_FLAGS}"
    )
    parser.add_argument(
        "--extension-flags", default="", help="added for the extension only, as --tokencake-..."
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="everything as JSON")
    return parser


def _tokenizer_path(options: argparse.Namespace) -> Path:
    return options.tokenizer_path or options.model_path or ensure_model()


def _server_flags(options: argparse.Namespace) -> list[str]:
    flags = ["--model-path", str(options.model_path or ensure_model()), "--enable-cache-report"]
    if options.tokenizer_path:
        flags += ["--tokenizer-path", str(options.tokenizer_path)]
    if options.load_format:
        flags += ["--load-format", options.load_format]
    return flags + shlex.split(options.server_flags)


def _run(
    label: str,
    flags: list[str],
    scenario: Scenario,
    tokenizer: Tokenizer,
    logs: Path,
    progress: Progress,
) -> Run:
    aware = label in EXTENSION
    task = progress.add_task(f"{label}: server starts", total=scenario.turns)
    name = label.replace(", ", "-").lower()
    environment = {"TOKENCAKE_DECISION_LOG": str(logs / f"{name}-decisions.jsonl")} if aware else {}
    with Server(flags, logs / f"{name}.log", environment) as server:
        progress.update(task, description=f"{label}: runs")
        endpoint = MeasuringEndpoint(
            server.url,
            lambda text: tokenizer.encode(text).ids,
            aware=aware,
            on_turn=lambda turn: progress.advance(task),
        )
        begun_s, busy_s, own_s, server_s = (
            time.monotonic(),
            _busy_s(),
            time.process_time(),
            server.cpu_s(),
        )
        application_s = run_all(endpoint, scenario)
        server_cpu_s = server.cpu_s() - server_s
        others_s = _busy_s() - busy_s - server_cpu_s - (time.process_time() - own_s)
        progress.update(task, description=f"{label}: done")
        return Run(
            label,
            application_s,
            endpoint.turns,
            status=endpoint.signals.status() if aware else None,
            server_start_s=server.start_s,
            server_cpu_s=server_cpu_s,
            others_cpus=max(0.0, others_s / (time.monotonic() - begun_s)),
        )


def _busy_s() -> float:
    """Processor time used by everything on this machine, on all processors together."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def _environment() -> dict[str, Any]:
    packages = ("sglang", "tokencake-sglang", "torch")
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped as well
    sys.exit(main())
