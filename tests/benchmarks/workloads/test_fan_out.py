import pytest

from benchmarks.workloads import fan_out
from tokencake_sglang.replay import tokens


def test_a_branch_follows_itself_and_the_report_all_of_them() -> None:
    run = fan_out.load("uneven")
    assert len(run.requests) == 1 + 30 + 1
    by_id = run.by_id
    assert by_id["uneven/branch_5_3"].wait_for == ("uneven/branch_5_2",)
    assert by_id["uneven/branch_5_1"].wait_for == ("uneven/planner",)
    ends = [
        f"uneven/branch_{number}_{steps}"
        for number, steps in enumerate(fan_out.BRANCHES["uneven"], 1)
    ]
    assert by_id["uneven/reporter"].wait_for == tuple(ends)
    assert not any(request.critical for request in run.requests)


def test_a_step_begins_with_all_that_its_branch_has_had_and_the_report_has_it_once() -> None:
    run = fan_out.load("uneven")
    first, second = (run.by_id[f"uneven/branch_8_{step}"] for step in (1, 2))
    so_far = tokens.joined((*first.prompt, *first.output))
    assert tokens.common_prefix(so_far, second.prompt) == tokens.length(so_far)
    step = fan_out.ROLE_TOKENS + fan_out.OUTPUT_TOKENS + fan_out.TOOL_RESULT_TOKENS
    reporter = run.by_id["uneven/reporter"]
    assert reporter.prompt_length == 4606 + 31 * step + fan_out.ROLE_TOKENS


def test_a_small_one_is_small() -> None:
    run = fan_out.load("small")
    assert [request.agent for request in run.requests] == [
        "planner",
        "branch_1_1",
        "branch_1_2",
        "reporter",
    ]
    assert run.prompt_tokens < 10_000


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="application: expected one of .*uneven"):
        fan_out.load("wide")
