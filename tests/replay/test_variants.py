"""Tool times, arrivals, copies and background: what they change and what they leave."""

import statistics
from itertools import pairwise

import pytest

from benchmarks.workloads import chat, tokencake_dags
from tests.replay.builders import request, workload
from tokencake_sglang.replay import arrivals, tool_times
from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.summary import summarize
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import ToolCall, Workload

APPLICATION = workload(
    request("app/a", tool_s=4.0, arrival_s=1.0, prompt=(Span("shared", 0, 8), Span("app/x", 0, 2))),
    request("app/b", after="app/a", tool_s=1.0, output=(Span("app/b/output", 0, 5),)),
    request("app/title", arrival_s=1.5),
)
MANY = arrivals.replicate(APPLICATION, 500)


def waits(of: Workload) -> list[float]:
    return [r.call.wait_s for r in of.requests if r.call is not None and r.call.declared_s == 4.0]


def starts(of: Workload) -> list[float]:
    return list(tokens_of(of).values())


def tokens_of(of: Workload) -> dict[str, float]:
    return {
        name: min(r.arrival_s for r in requests if r.arrival_s is not None)
        for name, requests in of.applications.items()
    }


def test_noise_scales_tool_times_around_the_declared_ones() -> None:
    noisy = waits(tool_times.with_noise(MANY, seed=1, scale=0.25))
    assert statistics.mean(noisy) == pytest.approx(4.0, abs=0.15)
    assert statistics.stdev(noisy) == pytest.approx(1.0, abs=0.1)
    strong = waits(tool_times.with_noise(MANY, seed=1, scale=3.0))
    assert min(strong) == 0.0 < max(strong)


def test_no_noise_changes_nothing_but_the_header() -> None:
    assert tool_times.with_noise(MANY, seed=1, scale=0.0).requests == MANY.requests


def test_poisson_tools_keep_the_mean_and_have_its_spread() -> None:
    drawn = waits(tool_times.with_poisson_tools(MANY, seed=2))
    assert statistics.mean(drawn) == pytest.approx(4.0, abs=0.4)
    assert statistics.stdev(drawn) == pytest.approx(4.0, abs=0.6)


def test_exact_hints_declare_what_each_call_really_takes() -> None:
    undeclared = request("app/a", call=ToolCall(tool="shell", wait_s=7.0))
    waits_for_others = request("app/b", call=ToolCall(tool="agent", wait_s=1.0, until=("app/a",)))
    told = tool_times.with_exact_hints(workload(undeclared, waits_for_others, request("app/c")))
    assert [r.call and r.call.declared_s for r in told.requests] == [7.0, None, None]
    assert told.header.options["hints"] == "exact"


def test_exact_hints_replace_a_callers_wrong_word() -> None:
    noisy = tool_times.with_noise(MANY, seed=1, scale=0.5)
    told = tool_times.with_exact_hints(noisy)
    calls = [r.call for r in told.requests if r.call is not None]
    assert all(call.declared_s == call.wait_s for call in calls)
    assert [call.wait_s for call in calls] == [r.call.wait_s for r in noisy.requests if r.call]


def test_a_draw_depends_on_seed_and_request_not_on_the_company() -> None:
    alone = tool_times.with_noise(Workload(MANY.header, MANY.requests[:3]), seed=1, scale=0.5)
    assert tool_times.with_noise(MANY, seed=1, scale=0.5).requests[:3] == alone.requests
    assert waits(tool_times.with_noise(MANY, seed=2, scale=0.5))[0] != waits(alone)[0]
    assert alone.header.options["tool_noise"] == 0.5


def test_copies_have_their_own_names_and_segments_and_share_the_rest() -> None:
    first, second = MANY.requests[1], MANY.requests[4]
    assert (second.request_id, second.application) == ("app#1/b", "app#1")
    assert second.wait_for == ("app#1/a",)
    assert second.output == (Span("app#1/b/output", 0, 5),)
    assert first.output != second.output
    assert MANY.requests[3].prompt == (Span("shared", 0, 8), Span("app#1/x", 0, 2))


def test_equal_spacing_moves_applications_as_a_whole() -> None:
    spaced = arrivals.equal_spacing(arrivals.replicate(APPLICATION, 3), rate=0.5)
    assert starts(spaced) == [0.0, 2.0, 4.0]
    assert spaced.by_id["app#1/title"].arrival_s == 2.5


def test_poisson_arrivals_have_the_rate_and_start_at_zero() -> None:
    times = starts(arrivals.poisson(MANY, rate=2.0, seed=3))
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0.0
    assert statistics.mean(gaps) == pytest.approx(0.5, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(0.5, rel=0.15)
    assert times != starts(arrivals.poisson(MANY, rate=2.0, seed=4))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_a_rate_is_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match="rate: expected applications a second above 0"):
        arrivals.equal_spacing(MANY, rate)


def test_lanes_keep_a_number_of_applications_under_way() -> None:
    laned = arrivals.lanes(arrivals.replicate(APPLICATION, 10), count=3)
    run = schedule(laned, lambda r: 1.0)
    assert run.most_open == 3
    # The longest path of one: 1 + 4 + 1 + 1 seconds; four rounds of it in the longest lane.
    assert run.makespan_s == pytest.approx(28.0)
    assert len({round(s, 6) for s in run.application_s.values()}) == 1


def test_merged_workloads_run_side_by_side() -> None:
    background = chat.generate(rate=0.5, duration_s=60.0, seed=5)
    both = arrivals.merge("both", [MANY, background])
    assert len(both.requests) == len(MANY.requests) + len(background.requests)
    assert both.header.options["chat.rate"] == 0.5


def test_chat_is_untagged_poisson_and_repeatable() -> None:
    talk = chat.generate(rate=2.0, duration_s=500.0, seed=1)
    assert len(talk.requests) == pytest.approx(1000, abs=100)
    assert all(r.application is None and r.agent is None for r in talk.requests)
    assert statistics.median(r.output_length for r in talk.requests) == pytest.approx(200, rel=0.1)
    assert statistics.median(r.prompt_length for r in talk.requests) == pytest.approx(768, rel=0.1)
    assert chat.generate(rate=2.0, duration_s=500.0, seed=1).requests == talk.requests
    assert summarize(talk).untagged_requests == len(talk.requests)


def test_a_summary_bounds_what_a_server_can_reach() -> None:
    summary = summarize(arrivals.replicate(tokencake_dags.load("code_writer"), 2))
    assert (summary.applications, summary.requests) == (2, 54)
    assert summary.longest_application_wait_s == 30.5
    assert summary.output_tokens < summary.distinct_tokens
    assert summary.least_prefill_tokens < summary.prompt_tokens / 10
