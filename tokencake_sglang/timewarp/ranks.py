"""Several tensor-parallel ranks in virtual time, each a process, with SGLang's own collectives.

Rank 0 has the workload. What it would have received from the main process goes to the others by
SGLang's own broadcast; ahead of it goes a ``Turn``, which keeps their clocks with rank 0's where
nothing runs and time is skipped. While something runs no rank is told the time: costs follow from
the batch, and a clock that has come to differ ends the run.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tokencake_sglang.timewarp.forks import Result, map_in_forks
from tokencake_sglang.timewarp.requests import Request


@dataclass(frozen=True, slots=True)
class Rank:
    """One of ``count`` ranks; ``port`` is where torch.distributed's ranks of one run meet."""

    number: int = 0
    count: int = 1
    port: int = 0

    def flags(self) -> tuple[str, ...]:
        """For SGLang's command line; none for a single rank."""
        if self.count == 1:
            return ()
        return ("--tp-size", str(self.count), "--nccl-port", str(self.port))


@dataclass(frozen=True, slots=True)
class Turn:
    """What every rank must know at the start of a turn of the loop and only rank 0 does."""

    now_s: float
    ends: bool
    submitted: tuple[Request, ...]

    @classmethod
    def of(cls, now_s: float, ends: bool, submitted: list[Request]) -> "Turn":
        """Callbacks stay with rank 0: the programs that wait for results are there."""
        return cls(now_s, ends, tuple(replace(request, on_finish=None) for request in submitted))


def run_in_ranks(
    function: Callable[..., Result],
    *arguments: Any,
    count: int,
    timeout_s: float | None = None,
) -> list[Result]:
    """Calls ``function(rank, *arguments)`` on ``count`` ranks at once; returns their results.

    The function builds a TimeWarp with ``rank=rank`` and calls ``run``; it submits, signals and
    arms timers on rank 0 only.

    Raises:
        forks.ChildFailed: for the first rank that fails; the others are killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(number: int) -> Result:
        # SGLang binds the threads of CPU ranks to cores, and wants a list where NUMA has none.
        cores = sorted(os.sched_getaffinity(0))
        binding = "|".join(str(cores[other % len(cores)]) for other in range(count))
        os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", binding)
        return function(Rank(number, count, port), *arguments)

    calls = [(number,) for number in range(count)]
    return map_in_forks(run, calls, processes=count, timeout_s=timeout_s)


def broadcast_turns(
    receiver: type, lead: Callable[[], list[Any]] | None, follow: Callable[[Turn], None]
) -> None:
    """Puts a rank's ends to SGLang's receiver class, whose broadcast stays as it is.

    Args:
        lead: rank 0's: a Turn, then what the main process would have sent. None on the others.
        follow: called on every rank, rank 0 too, with the Turn.
    """
    receive = receiver.recv_requests  # type: ignore[attr-defined]

    def recv_requests(self: Any, local_reqs: Any = None) -> list[Any]:
        turn, *requests = receive(self, local_reqs)
        follow(turn)
        return requests

    receiver._pull_raw_reqs = lambda _self: None if lead is None else lead()  # type: ignore[attr-defined]
    receiver.recv_requests = recv_requests  # type: ignore[attr-defined]
