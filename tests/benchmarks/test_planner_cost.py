"""What the planner costs: whose memory counts, which bars there are, and a small measurement."""

import pytest

from benchmarks.planner_cost import (
    NO_AGENTS,
    STALLED,
    Load,
    measure_memory,
    measure_steps,
    median_run,
    side_of,
    spread_us,
    too_much,
)
from tokencake_sglang.timewarp.forks import run_in_fork

SMALL = Load(
    agents=12,
    agents_before=4,
    running=2,
    pool_tokens=4096,
    host_tokens=40_960,
    steps=120,
    warmup_steps=20,
    # How many of so few are in calls at the end depends on when each one's turn came. With calls of
    # six seconds there are 8 if untagged requests keep their places, and 4 if they are a tenant.
    longest_call_s=9.0,
)


class TestSide:
    """Whose line allocated decides; the allocating line comes first."""

    def test_is_the_folder_of_the_allocating_line(self):
        assert side_of(["/x/tokencake_sglang/agents/table.py", "/x/sglang/srt/a.py"]) == "agents"

    def test_of_a_constructor_without_a_file_or_a_librarys_is_its_callers(self):
        files = ["<string>", "/usr/lib/collections.py", "/x/tokencake_sglang/engine/rank.py"]
        assert side_of(files) == "engine"

    def test_is_not_what_sglang_allocates_for_us(self):
        files = ["/x/sglang/srt/mem_cache/tree.py", "/x/tokencake_sglang/engine/cache.py"]
        assert side_of(files) is None

    def test_is_not_the_main_processs_table(self):
        files = ["/x/tokencake_sglang/agents/table.py", "/x/tokencake_sglang/signals/front_door.py"]
        assert side_of(files) is None

    def test_is_not_the_virtual_server(self):
        assert side_of(["/x/tokencake_sglang/timewarp/engine.py"]) is None
        assert side_of(["/x/benchmarks/planner_cost.py"]) is None

    def test_a_checkout_named_like_the_package_is_no_folder_of_it(self):
        files = ["/tokencake_sglang/tokencake_sglang/spatial/order.py"]
        assert side_of(files) == "spatial"


def test_a_spread_is_in_microseconds():
    spread = spread_us([1000] * 98 + [3000, 103_000])
    assert spread == {"median": 1.0, "mean": 2.04, "p99": 103.0, "max": 103.0}


def test_of_several_runs_the_one_in_the_middle_counts():
    runs = [
        {"number": n, "step_and_ticks_us": {"mean": us}} for n, us in enumerate((9.0, 3.0, 5.0))
    ]
    found = median_run(runs)
    assert (found["number"], found["means_us_of_runs"]) == (2, [9.0, 3.0, 5.0])
    assert median_run(runs[:1])["number"] == 0


def test_bars_are_of_the_mean_step_and_of_an_agents_bytes():
    def report(idle_us: float, stalled_us: float, size: int):
        steps = {NO_AGENTS: idle_us, STALLED: stalled_us}
        return {
            "steps": {name: {"step_and_ticks_us": {"mean": us}} for name, us in steps.items()},
            "memory": {"bytes_per_agent": size},
        }

    assert too_much(report(5.0, 50.0, 2048)) == []
    assert [text.split(":")[0] for text in too_much(report(5.1, 50.1, 2048))] == [
        NO_AGENTS,
        STALLED,
    ]
    assert too_much(report(1.0, 1.0, 2049)) == ["2049 bytes an agent, at most 2048 are meant"]


@pytest.mark.slow
class TestMeasured:
    def test_agents_are_stalled_and_return_while_steps_are_counted(self):
        found = run_in_fork(measure_steps, SMALL, SMALL.agents)
        assert found["agents"] == SMALL.agents
        assert found["steps"] >= SMALL.steps
        assert 0 < found["steps_with_a_tick"] <= found["steps"]
        assert found["stalled_at_the_end"] >= SMALL.agents / 2
        assert found["agents_wholly_on_the_device"] > 0
        assert found["agents_partly_on_the_host_only"] > 0
        spread = found["step_and_ticks_us"]
        assert 0 < spread["median"] <= spread["p99"] <= spread["max"]
        assert spread["mean"] >= found["step_us"]["mean"]
        assert found["rest_of_scheduler_us"]["mean"] > spread["mean"]

    def test_without_agents_there_is_no_tick(self):
        found = run_in_fork(measure_steps, SMALL, 0)
        assert (found["agents"], found["steps_with_a_tick"]) == (0, 0)
        assert found["step_us"] == found["step_and_ticks_us"]

    def test_memory_is_that_of_the_agents_added(self):
        found = run_in_fork(measure_memory, SMALL)
        assert found["agents"] == SMALL.agents
        assert found["bytes_per_agent_by_folder"]["agents"] > 500
        parts = found["bytes_per_agent_by_folder"].values()
        assert sum(parts) == pytest.approx(found["bytes_per_agent"], abs=len(parts))
