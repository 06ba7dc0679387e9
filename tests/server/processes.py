"""Real servers and scripts in processes of their own."""

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

PORTS = range(31_300, 31_400)
"""HTTP ports; the ZeroMQ door takes the port 1000 above, which must not be one (from 32,768 on) that
the kernel gives to an outgoing connection while the server starts."""
READY_TIMEOUT_S = 180.0
PR_SET_PDEATHSIG = 1
SCRIPTS = Path(__file__).parent / "scripts"
REPOSITORY = Path(__file__).parents[2]

LAUNCH_SERVER = (sys.executable, "-m", "sglang.launch_server")
SGLANG_SERVE = (str(Path(sys.executable).with_name("sglang")), "serve")

MODEL_FLAGS = ("--dtype", "float32", "--hicache-ratio", "4")
TINY_FLAGS = (*MODEL_FLAGS, "--load-format", "dummy", "--skip-tokenizer-init")


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what its own use of the extension left there."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("TOKENCAKE_")
    }
    python_path = {"PYTHONPATH": str(REPOSITORY)}
    return {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **python_path, **variables}


def free_port() -> int:
    """A port of ``PORTS`` that is free together with its ZeroMQ port."""
    for port in random.sample(PORTS, len(PORTS)):
        if _is_free(port) and _is_free(port + 1000):
            return port
    raise RuntimeError(f"no free port in {PORTS}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _die_with_the_tests() -> None:
    """Runs in the child: it ends with the test process, however that ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_python(
    *arguments: str, timeout_s: float = READY_TIMEOUT_S, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs ``python ARGUMENTS`` to its end; nothing it started outlives it."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_die_with_the_tests,  # noqa: PLW1509 - it takes no lock
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    finally:
        _kill_group(process.pid)
        process.wait()
    return subprocess.CompletedProcess(arguments, process.returncode, output)


def last_line(completed: subprocess.CompletedProcess[str]) -> str:
    return completed.stdout.rstrip().splitlines()[-1]


def printed_json(completed: subprocess.CompletedProcess[str]) -> Any:
    """What a script of ``SCRIPTS`` printed; libraries may have their say after it."""
    lines = completed.stdout.splitlines()
    return json.loads(next(line for line in reversed(lines) if line.startswith(("{", "["))))


class Server:
    """One server in a process group of its own, as a context manager: ready inside, gone after."""

    def __init__(
        self,
        log: Path,
        model: Path,
        flags: Sequence[str],
        launcher: Sequence[str] = LAUNCH_SERVER,
        api_key: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.zmq = f"tcp://127.0.0.1:{self.port + 1000}"
        self.api_key = api_key
        self._log = log
        key_flags = ("--api-key", api_key) if api_key else ()
        self._command = [
            *(*launcher, "--model-path", str(model)),
            *("--port", str(self.port), *key_flags, *flags),
        ]
        self._variables = dict(variables or {})
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=60.0)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Self:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                env=environment(**self._variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_the_tests,  # noqa: PLW1509 - it takes no lock
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.http.close()
        self._stop()

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                break
            try:
                if self.http.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise AssertionError(f"the server did not get ready:\n{self.log[-4000:]}")

    def _stop(self) -> None:
        # There is nothing to drain, and a graceful end takes seconds.
        _kill_group(self._process.pid)
        self._process.wait()


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
