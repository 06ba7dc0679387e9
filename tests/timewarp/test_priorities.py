"""SGLang's priorities beside the extension's own order and admission."""

import pytest

from tests.timewarp.runs import prompt, time_warp
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.timewarp.engine import Request
from tokencake_sglang.timewarp.forks import run_in_fork

pytestmark = pytest.mark.slow

BY_PRIORITY = ("--enable-priority-scheduling", "--priority-scheduling-preemption-threshold", "10")
EXTENSION = ("--enable-tokencake",)
RESERVE = (*EXTENSION, "--tokencake-reserve-max", "0.5")


def finished_s(
    flags: tuple[str, ...], requests: list[tuple[str, int, int, int, float]], running: int
) -> tuple[dict[str, float], int]:
    """When each request ended, in virtual seconds, and how many were put back for others.

    ``requests``: application, priority, prompt and output tokens, and when it is sent.
    """
    warp = time_warp(
        pool_tokens=2048,
        host_tokens=8192,
        page_size=1,
        max_running_requests=running,
        overlap=False,
        flags=(*flags, *BY_PRIORITY),
    )
    for number, (name, priority, prompt_tokens, output_tokens, at_s) in enumerate(requests):
        request = Request(
            name,
            prompt(number, prompt_tokens),
            [5] * output_tokens,
            tag=AgentTag(agent=name, application=name, critical=name == "critical"),
            priority=priority,
        )
        warp.call_at(at_s, lambda request=request: warp.submit(request))
    warp.run()
    ends = {name: float(request.finished_s or 0.0) for name, request in warp.requests.items()}
    return ends, warp.totals.retractions


def test_the_older_application_comes_after_the_one_of_higher_priority(forking_process):
    waiting = [("busy", 5, 400, 60, 0.0), ("old", 0, 400, 20, 0.1), ("new", 5, 400, 20, 0.2)]
    ends_s, _ = forking_process(run_in_fork, finished_s, EXTENSION, waiting, 1)
    assert ends_s["busy"] < ends_s["new"] < ends_s["old"]


def test_of_equal_priority_the_older_application_goes_first(forking_process):
    waiting = [("busy", 5, 400, 60, 0.0), ("old", 5, 400, 20, 0.1), ("new", 5, 400, 20, 0.2)]
    ends_s, _ = forking_process(run_in_fork, finished_s, EXTENSION, waiting, 1)
    assert ends_s["busy"] < ends_s["old"] < ends_s["new"]


@pytest.mark.parametrize("flags", [EXTENSION, RESERVE], ids=["no reserve", "a reserve"])
def test_whoever_is_preempted_makes_room_for_the_one_of_higher_priority(forking_process, flags):
    """Kept outside the working set, or by the reserve for a critical agent that waits, it would have
    made others give way for nothing."""
    low = [(f"low-{number}", 0, 400, 100, 0.0) for number in range(4)]
    requests = [*low, ("critical", 0, 500, 4, 0.5), ("high", 50, 500, 4, 1.0)]
    ends_s, preempted = forking_process(run_in_fork, finished_s, flags, requests, 4)
    assert preempted >= 1
    assert ends_s["high"] < min(ends_s[name] for name, *_ in low)
