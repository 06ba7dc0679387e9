"""An SGLang server as a child process: started, waited for, stopped, its log kept."""

import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 10.0
PORTS = range(31100, 31200)  # 1000 above: still none of the kernel's ephemeral ports


class Server:
    """``with Server(flags, log) as server:`` runs one server; inside the block it is healthy.

    Args:
        flags: of ``sglang.launch_server``; host and port are added.
        log: file that receives everything the server prints.
        environment: added to this process's own.
    """

    def __init__(
        self, flags: Sequence[str], log: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.log = log
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "sglang.launch_server", *flags]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port)]
        self.environment = {**os.environ, **(environment or {})}
        self.start_s = 0.0
        """How long the start took."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        started_s = time.monotonic()
        with self.log.open("wb") as log:
            log.write(f"$ {shlex.join(self.command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.log.parent,
                start_new_session=True,
            )
        try:
            self._wait_until_healthy(started_s + START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise
        self.start_s = time.monotonic() - started_s
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server and every process it started."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()  # SGLang ends its children itself, with crash diagnostics if they go first
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        _signal_group(process.pid, signal.SIGKILL)  # its children may outlive it
        process.wait()

    def cpu_s(self) -> float:
        """Processor time that the server has used so far, all its processes together."""
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in [parent, *parent.children(recursive=True)]]
        return sum(time.user + time.system for time in times)

    def _wait_until_healthy(self, deadline_s: float) -> None:
        assert self._process is not None
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"the server ended with {self._process.returncode}: {self.tail()}"
                )
            try:
                # Answers only after the scheduler has generated something.
                with urllib.request.urlopen(f"{self.url}/health_generate", timeout=5.0):
                    self._check_port()
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        raise TimeoutError(f"no healthy server after {START_TIMEOUT_S:.0f} s: {self.tail()}")

    def _check_port(self) -> None:
        """Raises RuntimeError when it is somebody else's server that answers on the port."""
        assert self._process is not None
        own = psutil.Process(self._process.pid).net_connections("tcp")
        ports = {c.laddr.port for c in own if c.status == psutil.CONN_LISTEN}
        if self.port not in ports:
            raise RuntimeError(f"port {self.port} was taken while the server started; run again")

    def tail(self, lines: int = 25) -> str:
        """The end of the log, for error messages."""
        text = self.log.read_text(errors="replace")
        return f"{self.log}\n" + "\n".join(text.splitlines()[-lines:])


def _free_port() -> int:
    """A port that is free, and so is the one 1000 above it, TokenCake's own for signals."""
    for port in random.sample(PORTS, len(PORTS)):  # others may be looking for one as well
        if all(_is_free(candidate) for candidate in (port, port + 1000)):
            return port
    raise OSError(f"no free port from {PORTS[0]} to {PORTS[-1]}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _signal_group(process_group: int, number: signal.Signals) -> None:
    try:
        os.killpg(process_group, number)
    except ProcessLookupError:
        pass
