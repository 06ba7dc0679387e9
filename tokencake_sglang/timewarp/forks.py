"""One process for each run, without importing SGLang each time.

A process can hold one Scheduler, and getting to one takes some ten seconds, nearly all of them
imports. A parent that has imported everything and started nothing forks a child for each run::

    from tokencake_sglang.timewarp.forks import map_in_forks, run_in_fork

    result = run_in_fork(one_run, scenario)  # the first call imports; later ones take a moment
    results = map_in_forks(one_run, [(scenario,) for scenario in scenarios], processes=2)

The parent must neither build a TimeWarp itself nor have threads running: a fork copies only the
calling thread, and locks as they happen to be. Functions need not be picklable (the child has
them), results must be. Unix only.
"""

import gc
import importlib
import logging
import os
import pickle
import selectors
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn, TypeVar

Result = TypeVar("Result")

_MODULES = (
    # What a Scheduler imports by the time that it is built.
    "sglang.srt.server_args",
    "sglang.srt.managers.scheduler",
    "sglang.srt.models.registry",
    "sglang.srt.dllm.algorithm",
    "sglang.srt.layers.attention.torch_native_backend",
    "sglang.srt.mem_cache.hybrid_cache.hybrid_pool_assembler",
    "tokencake_sglang.engine.scheduler_hooks",
    "tokencake_sglang.signals.front_door",
    "tokencake_sglang.timewarp.engine",
    "tokencake_sglang.timewarp.streams",
)


class ChildFailed(RuntimeError):
    """A child raised, was killed or ran out of time; the message has its traceback."""


@cache
def preload() -> None:
    """Imports what every run needs; once per process, some eight seconds."""
    import torch

    # Before any thread pool starts, which a child would find without its threads. A run's tensors
    # are tiny: one thread is also the fastest.
    torch.set_num_threads(1)
    with _quietly():
        from sglang.srt.plugins import load_plugins

        load_plugins()
        for name in _MODULES:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is imported stays: no child's collector walks it, and its pages stay shared


def run_in_fork(
    function: Callable[..., Result], *arguments: Any, timeout_s: float | None = None
) -> Result:
    """Returns what ``function(*arguments)`` returns in a process of its own.

    Raises:
        ChildFailed: with the child's traceback, or the signal that ended it.
    """
    return map_in_forks(function, [arguments], timeout_s=timeout_s)[0]


def map_in_forks(
    function: Callable[..., Result],
    arguments: Sequence[tuple[Any, ...]],
    *,
    processes: int = 1,
    timeout_s: float | None = None,
    on_result: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Calls ``function(*arguments[i])`` for each i, each in a process of its own.

    Args:
        processes: how many run at a time.
        timeout_s: real seconds that a child may take; it is killed after that.
        on_result: called here with i and its result as each is done, in order of completion.

    Returns:
        The results in the order of ``arguments``.

    Raises:
        ChildFailed: for the first that fails; the others that run are killed.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}; at least 1 must run")
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise RuntimeError(f"forking needs a process with one thread; this one runs {names}")
    preload()
    results: dict[int, Any] = {}
    waiting = list(enumerate(arguments))[::-1]
    children: dict[int, _Child] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or children:
                while waiting and len(children) < processes:
                    index, given = waiting.pop()
                    child = children[index] = _Child(function, given, timeout_s)
                    selector.register(child.pipe, selectors.EVENT_READ, index)
                for key, _ in selector.select(_wait_s(children.values())):
                    child = children[key.data]
                    if child.read():
                        continue
                    selector.unregister(child.pipe)
                    results[key.data] = children.pop(key.data).result()
                    if on_result is not None:
                        on_result(key.data, results[key.data])
                for child in children.values():
                    child.check_time()
        finally:
            for child in children.values():
                child.kill()
    return [results[index] for index in range(len(arguments))]


@contextmanager
def _quietly() -> Iterator[None]:
    """SGLang warns of every model and kernel that this machine has not the libraries for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _wait_s(children: Iterable["_Child"]) -> float | None:
    deadlines = [child.deadline_s for child in children if child.deadline_s is not None]
    return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


class _Child:
    """A forked process that calls one function and sends the outcome through a pipe."""

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float | None
    ) -> None:
        self.timeout_s = timeout_s
        self.deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._received = bytearray()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pipe, sending = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            _serve(function, arguments, sending)
        os.close(sending)

    def read(self) -> bool:
        """Takes what has come; False when the child has closed its end."""
        block = os.read(self.pipe, 1 << 20)
        self._received += block
        return bool(block)

    def result(self) -> Any:
        """What the function returned; the child has ended."""
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if not self._received:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            raise ChildFailed(f"the child ended with {how} and left no result")
        succeeded, outcome = pickle.loads(self._received)
        if not succeeded:
            raise ChildFailed(outcome)
        return outcome

    def check_time(self) -> None:
        if self.deadline_s is not None and time.monotonic() >= self.deadline_s:
            raise ChildFailed(f"the child has not ended within {self.timeout_s} s")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pipe)


def _serve(function: Callable[..., Any], arguments: tuple[Any, ...], sending: int) -> NoReturn:
    """The child's whole life. It leaves without the exit handlers, which are the parent's."""
    try:
        message = pickle.dumps((True, function(*arguments)))
    except BaseException:  # noqa: BLE001 - SGLang and the extension refuse by SystemExit
        message = pickle.dumps((False, traceback.format_exc()))
    with os.fdopen(sending, "wb") as pipe:
        pipe.write(message)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
