"""What a workload's applications can declare of themselves."""

import math
import statistics

import pytest

from benchmarks.workloads import fan_out
from tests.replay.builders import request, workload
from tokencake_sglang.agents.events import ApplicationStart
from tokencake_sglang.replay.critical_path import critical_paths_s
from tokencake_sglang.replay.declarations import declared_graphs, declared_outputs
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import ToolCall
from tokencake_sglang.spatial.graph import DeclaredPaths
from tokencake_sglang.timewarp.cost import CostModel
from tokencake_sglang.timewarp.hardware import load_hardware_profile
from tokencake_sglang.timewarp.models import load_model_profile

COST = CostModel(load_model_profile("qwen2.5-14b"), load_hardware_profile("a800"))


def test_an_agents_turns_are_one_node_after_the_agents_they_waited_for() -> None:
    run = workload(
        request("plan", tool_s=4.0),
        request("work", after="plan", delay_s=2.0),
        request("again", agent="work", after="work", call=ToolCall(tool="t", wait_s=7.0)),
        request("sub", spawned_by="plan"),
        request("other", application="next", after="again"),
        request("chat", application=None),
    )
    graphs = declared_graphs(run, COST)
    assert graphs.keys() == {"app", "next"}
    after = {node.name: node.after for node in graphs["app"]}
    assert after == {"plan": (), "work": ("plan",), "sub": ("plan",)}
    assert graphs["next"][0].after == (), "what another application does is no node of this one"
    times_s = {node.name: node.expected_s for node in graphs["app"]}
    assert times_s["plan"] == pytest.approx(4.0 + times_s["sub"], abs=0.05)
    assert times_s["work"] == pytest.approx(2.0 + 7.0 + 2 * times_s["sub"], abs=0.1)


def test_a_call_counts_as_it_was_declared_for_nobody_knows_its_length_beforehand() -> None:
    (told,) = declared_graphs(
        workload(request("a", call=ToolCall(tool="t", wait_s=90.0, declared_s=5.0))), COST
    )["app"]
    assert told.expected_s is not None
    assert 5.0 < told.expected_s < 6.0


def test_the_longest_way_through_the_graph_is_the_applications_critical_path() -> None:
    run = fan_out.load("uneven")
    graph = declared_graphs(run, COST)["uneven"]
    ApplicationStart(application="uneven", graph=graph)  # a server accepts it
    alone_s = critical_paths_s(run, COST)["uneven"]
    paths = DeclaredPaths(graph)
    assert paths.remaining_s("planner") == pytest.approx(alone_s)
    short_s, long_s = (paths.remaining_s(f"branch_{branch}_1") for branch in (1, 8))
    assert short_s is not None
    assert long_s is not None
    assert long_s > 2 * short_s


def _tokens(count: int) -> tuple[Span, ...]:
    return (Span("output", 0, count),)


def test_an_application_declares_what_its_requests_generate_together() -> None:
    run = workload(
        request("plan", output=_tokens(30)),
        request("work", after="plan", output=_tokens(70)),
        request("other", application="next", output=_tokens(9)),
        request("chat", application=None, output=_tokens(5)),
    )
    assert declared_outputs(run, 0.0) == {"app": 100, "next": 9}


def test_what_it_declares_may_be_wrong_by_so_much_and_always_the_same() -> None:
    run = workload(
        *(request(f"r{i}", application=f"a{i}", output=_tokens(1000)) for i in range(200))
    )
    rough = declared_outputs(run, 1.0)
    assert rough == declared_outputs(run, 1.0)
    logarithms = [math.log2(tokens / 1000) for tokens in rough.values()]
    assert statistics.mean(logarithms) == pytest.approx(0.0, abs=0.2)
    assert statistics.stdev(logarithms) == pytest.approx(1.0, abs=0.15)
