"""One process for each run, forked from one that has imported everything."""

import os
import signal
import time

import pytest

from tests.timewarp.runs import batch
from tokencake_sglang.timewarp.forks import ChildFailed, map_in_forks, run_in_fork

pytestmark = pytest.mark.slow


def nap_and_number(number: int, seconds: float) -> tuple[int, int]:
    time.sleep(seconds)
    return number, os.getpid()


def fail(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        raise SystemExit("tokencake: --flag is refused")
    raise ValueError("a value of the child's")


def raised(how: str) -> str:
    """In the forking process: what its child's end is reported as."""
    try:
        run_in_fork(fail, how)
    except ChildFailed as error:
        return str(error)
    return ""


def out_of_time() -> tuple[str, float]:
    started_s = time.monotonic()
    try:
        run_in_fork(nap_and_number, 1, 60.0, timeout_s=0.5)
    except ChildFailed as error:
        return str(error), time.monotonic() - started_s
    return "", 0.0


def several(processes: int) -> tuple[list[tuple[int, int]], list[int]]:
    order: list[int] = []
    results = map_in_forks(
        nap_and_number,
        [(0, 1.0), (1, 0.1), (2, 0.1)],
        processes=processes,
        on_result=lambda index, _result: order.append(index),
    )
    return results, order


def test_runs_follow_each_other_although_a_process_holds_one_scheduler(forking_process):
    first, second = (forking_process(run_in_fork, batch, True, 0, 2, 2, 4096) for _ in range(2))
    assert first == second


def test_results_come_in_order_of_the_arguments_and_are_reported_as_they_are_done(forking_process):
    results, order = forking_process(several, 2)
    assert [number for number, _ in results] == [0, 1, 2]
    assert len({pid for _, pid in results}) == 3
    assert order == [1, 2, 0]


def test_only_so_many_run_at_a_time(forking_process):
    assert forking_process(several, 1)[1] == [0, 1, 2]


@pytest.mark.parametrize(
    ("how", "reported"),
    [
        ("raise", "ValueError: a value of the child's"),
        ("exit", "SystemExit: tokencake: --flag is refused"),
        ("killed", "the child ended with signal SIGKILL and left no result"),
    ],
)
def test_a_failure_says_what_the_child_died_of(forking_process, how, reported):
    assert reported in forking_process(raised, how)


def test_a_child_that_takes_too_long_is_killed(forking_process):
    message, took_s = forking_process(out_of_time)
    assert message == "the child has not ended within 0.5 s"
    assert took_s < 30
