"""Which sources a result depends on: what is unchanged need not be run again."""

import ast
import functools
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

from benchmarks.matrix.systems import LOWER_BOUND, all_systems, rivals

REPOSITORY = Path(__file__).parents[2]

# What any run is made of: the virtual server, the closed loop, the requests, the figures.
_EVERY = (
    "tokencake_sglang/timewarp",
    "tokencake_sglang/replay",
    "tokencake_sglang/platforms",
    "benchmarks/workloads",
    "benchmarks/data",
    "benchmarks/matrix/execute.py",
    "benchmarks/matrix/figures.py",
    "benchmarks/matrix/workloads.py",
)
# In no cell: clients, the HTTP routes, commands, and the data that score the duration model. Of the
# named systems a result holds the settings themselves.
_NEVER = (
    "tokencake_sglang/command.py",
    "tokencake_sglang/frontend",
    "tokencake_sglang/replay/command.py",
    "tokencake_sglang/replay/comparison.py",
    "tokencake_sglang/replay/recorder.py",
    "tokencake_sglang/replay/summary.py",
    "tokencake_sglang/replay/systems.py",
    "tokencake_sglang/signals/agent_handle.py",
    "tokencake_sglang/signals/client.py",
    "tokencake_sglang/signals/http.py",
    "tokencake_sglang/signals/http_transport.py",
    "tokencake_sglang/signals/status_page.py",
    "tokencake_sglang/signals/tag_middleware.py",
    "tokencake_sglang/signals/transports.py",
    "tokencake_sglang/signals/zmq_door.py",
    "tokencake_sglang/signals/zmq_transport.py",
    "tokencake_sglang/timewarp/calibration.py",
    "benchmarks/data/tool_calls_miniswe.csv.gz",
    "benchmarks/data/tool_calls_weka.csv.gz",
)
# What no server can be better than: no run asks.
_BOUND = (
    "tokencake_sglang/replay/bounds.py",
    "tokencake_sglang/replay/busy_dates.py",
    "tokencake_sglang/replay/machine_work.py",
    "tokencake_sglang/replay/one_machine.py",
)
# Without the flag the server is stock SGLang: these do not count for SGLang's own settings.
_EXTENSION = ("tokencake_sglang",)
_RIVALS = ("tokencake_sglang", "benchmarks/rivals")
# TokenCake's own decisions, which a server with another policy never makes.
_OWN = (
    "tokencake_sglang/temporal",
    "tokencake_sglang/spatial",
    "tokencake_sglang/engine/planner.py",
    "tokencake_sglang/engine/temporal.py",
    "tokencake_sglang/engine/uploads.py",
    "tokencake_sglang/engine/spatial.py",
    "tokencake_sglang/engine/applications.py",
    "tokencake_sglang/engine/copies.py",
    "tokencake_sglang/engine/headroom.py",
    "tokencake_sglang/engine/next_use.py",
    "tokencake_sglang/engine/turns.py",
    "tokencake_sglang/engine/working_set.py",
)


def fingerprint(system_name: str) -> str:
    """A digest of the sources that a result of this system depends on.

    Comments, docstrings and layout do not count.
    """
    if system_name in rivals():
        return _fingerprint(_EVERY + _RIVALS, without=_OWN + _BOUND)
    if system_name == LOWER_BOUND:
        return _fingerprint(_EVERY)
    if all_systems()[system_name].stock:
        return _fingerprint(_EVERY, without=_BOUND)
    return _fingerprint(_EVERY + _EXTENSION, without=_BOUND)


@functools.cache
def _fingerprint(parts: tuple[str, ...], without: tuple[str, ...] = ()) -> str:
    files = _files(parts) - _files(without) - _files(_NEVER)
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.relative_to(REPOSITORY)}\n{_digest(file)}\n".encode())
    return total.hexdigest()[:16]


def _files(parts: tuple[str, ...]) -> set[Path]:
    return {
        file
        for part in parts
        for file in ([REPOSITORY / part] if Path(part).suffix else (REPOSITORY / part).rglob("*"))
        if file.is_file() and file.suffix in {".py", ".toml", ".json", ".gz", ".csv"}
    }


@functools.cache
def _digest(file: Path) -> str:
    if file.suffix != ".py":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return hashlib.sha256(meaning(file.read_text()).encode()).hexdigest()


def meaning(source: str) -> str:
    """What a module does: its syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def versions() -> dict[str, str]:
    """Of what a result may depend on beside this repository's sources."""
    packages = ("tokencake-sglang", "sglang", "torch")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
