"""The formulas of the figures, on numbers that can be checked by hand."""

import pytest

from tests.replay.builders import request, workload
from tokencake_sglang.replay.fairness import fairness, jain_index
from tokencake_sglang.replay.gantt import median_application
from tokencake_sglang.replay.preemptions import Preemptions
from tokencake_sglang.replay.progress import Progress
from tokencake_sglang.replay.quantiles import quantile, spread, spread_and_max
from tokencake_sglang.replay.workload import ToolCall


def test_a_quantile_is_the_value_at_the_floor_of_q_n() -> None:
    values = [float(value) for value in range(24, 0, -1)]
    assert [quantile(values, q) for q in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1, 13, 23, 24, 24]
    assert quantile([], 0.5) == 0.0


def test_a_spread_names_mean_and_quantiles() -> None:
    assert spread([1.0, 2.0, 6.0]).mean == 3.0
    whole = spread_and_max(float(value) for value in range(101))
    assert (whole.p50, whole.p95, whole.p99, whole.max) == (50, 95, 99, 100)
    assert spread([]).mean == spread_and_max([]).max == 0.0


def test_the_jain_index_is_one_over_n_if_one_has_everything() -> None:
    assert jain_index([3.0, 3.0, 3.0]) == 1.0
    assert jain_index([5.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain_index([1.0, 2.0, 3.0]) == pytest.approx(36 / 42)
    assert jain_index([]) == 1.0


def test_fairness_is_of_slowdowns_not_of_seconds() -> None:
    result = fairness({"short": 2.0, "long": 20.0}, {"short": 1.0, "long": 10.0})
    assert (result.jain, result.worst_slowdown) == (1.0, 2.0)
    result = fairness({"short": 8.0, "long": 20.0}, {"short": 2.0, "long": 10.0})
    assert (result.jain, result.worst_slowdown) == (pytest.approx(0.9), 4.0)
    with pytest.raises(ValueError, match="more than 0 for 'short'"):
        fairness({"short": 2.0}, {"short": 0.0})


def test_the_median_application_is_the_slower_of_the_middle_two() -> None:
    assert median_application({"a": 3.0, "b": 1.0, "c": 2.0}) == "c"
    assert median_application({"a": 3.0, "b": 1.0, "c": 2.0, "d": 9.0}) == "a"


def test_a_dispatch_is_known_when_the_calls_before_it_are_under_way() -> None:
    finished: dict[str, float] = {}
    run = workload(
        request("a", call=ToolCall(tool="subagent", wait_s=1.0, until=("x",))),
        request("x", spawned_by="a", delay_s=0.5, tool_s=2.0),
        request("b", after="a", delay_s=0.25),
    )
    progress = Progress(run, finished.get)
    at = {name: lambda name=name: progress.dispatch_s(run.by_id[name]) for name in "axb"}
    assert (at["a"](), at["x"](), at["b"]()) == (0.0, None, None)
    finished["a"] = 10.0
    assert (at["x"](), at["b"]()) == (10.5, None)
    finished["x"] = 20.0
    assert progress.settled_s("x") == 22.0
    assert at["b"]() == 23.25


class Adder:
    """Gives up two requests for the first that asks, none for others."""

    def __init__(self) -> None:
        self.preempt_list: list[str] = ["earlier"]

    def preempt_to_schedule(self, req: str) -> bool:
        if req == "urgent":
            self.preempt_list += ["a", "b"]
        return req == "urgent"


@pytest.mark.parametrize("preempts, counted", [(True, 2), (False, 0)])
def test_preempted_requests_are_counted(preempts: bool, counted: int) -> None:
    class Scheduler:
        enable_priority_preemption = preempts

        def get_prefill_adder_class(self) -> type[Adder]:
            return Adder

    scheduler = Scheduler()
    preemptions = Preemptions(scheduler)
    adder = scheduler.get_prefill_adder_class()()
    assert adder.preempt_to_schedule("urgent") and not adder.preempt_to_schedule("other")
    assert preemptions.requests == counted
    assert scheduler.get_prefill_adder_class() is scheduler.get_prefill_adder_class()
