"""The demo's figures, on runs made by hand; no server."""

import io
from dataclasses import replace

import pytest

pytest.importorskip("sglang")

from rich.console import Console

from examples.code_writer.measure import (
    Run,
    Turn,
    computed_before_tokens,
    differing_outputs,
    extension_figures,
    figures,
)
from examples.code_writer.report import VERDICT, better_stock, cautions, side_by_side, verdict
from examples.code_writer.scenario import PROGRAMMERS, Scenario

STATUS = {
    "ranks": [
        {
            "decisions": {
                "counts": {
                    "release.finished": 2,
                    "return.uploaded_in_time": 3,
                    "return.resident": 1,
                    "return.upload_late": 4,
                },
                "tokens": {
                    "insure.call_started": 70,
                    "release.finished": 40,
                    "release.in_call": 60,
                    "upload.return_predicted": 25,
                    "upload.call_finished": 5,
                    "return.uploaded_in_time": 30,
                },
            }
        }
    ]
}


def turn(prompt, output, *, sent, answered, index=0, device=0, host=0, agent="coder"):
    return Turn(
        application="run",
        agent=agent,
        index=index,
        prompt_ids=tuple(prompt),
        output_ids=tuple(output),
        started_s=sent,
        ttft_s=(answered - sent) / 2,
        finished_s=answered,
        device_tokens=device,
        host_tokens=host,
    )


def run(turns, *, label="stock", application_s=(3.0, 5.0), status=None):
    return Run(
        label,
        list(application_s),
        list(turns),
        status=status,
        server_start_s=20.0,
        server_cpu_s=4.0,
        others_cpus=0.0,
    )


FIRST = turn([1, 2, 3, 4], [5, 6], sent=0.0, answered=1.0)
SECOND = turn([1, 2, 3, 4, 5, 6, 7, 8], [9, 9], sent=2.0, answered=4.0, index=1, device=2, host=1)


def test_what_was_computed_is_the_prompt_and_the_output_but_for_its_last_token():
    assert computed_before_tokens([FIRST, SECOND]) == [0, 5]


def test_a_turn_that_still_runs_has_computed_nothing_yet():
    early = replace(SECOND, started_s=0.5)
    assert computed_before_tokens([FIRST, early]) == [0, 0]


def test_the_last_token_of_a_prompt_is_never_counted_as_computed():
    again = turn([1, 2, 3, 4], [5, 6], sent=2.0, answered=3.0, agent="other")
    assert computed_before_tokens([FIRST, again]) == [0, 3]


def test_recomputed_is_what_was_computed_before_and_found_in_no_tier():
    made = figures(run([FIRST, SECOND]))
    assert made["recomputed_tokens"] == 5 - 2 - 1
    assert made["prompt_tokens"] == 12
    assert made["prefilled_tokens"] == 12 - 3
    assert made["device_hit_rate"] == pytest.approx(2 / 5)
    assert made["host_hit_rate"] == pytest.approx(1 / 5)


def test_a_hit_on_a_running_turn_does_not_offset_another_turns_recomputation():
    lucky = turn([1, 2, 3, 9], [9], sent=0.5, answered=1.5, device=3, agent="other")
    assert figures(run([FIRST, lucky, SECOND]))["recomputed_tokens"] == 2


def test_only_returning_turns_count_for_the_time_to_first_token_of_returns():
    made = figures(run([FIRST, SECOND]))
    assert made["returning_ttft_s"] == {"mean": 1.0, "p50": 1.0, "max": 1.0}
    assert made["first_ttft_s"]["mean"] == 0.5
    assert made["makespan_s"] == 4.0
    assert made["application_s"] == {"each": [3.0, 5.0], "mean": 4.0, "max": 5.0}


def test_the_extensions_tokens_are_summed_over_reasons():
    made = extension_figures(STATUS)
    assert made["offloaded_tokens"] == 100
    assert made["uploaded_tokens"] == 30
    assert made["insured_tokens"] == 70
    assert made["returns_uploaded_in_time"] == 3
    assert made["returns_upload_late"] == 4
    assert made["returns_lost"] == 0


def test_equal_runs_do_not_differ():
    assert differing_outputs([run([FIRST, SECOND]), run([SECOND, FIRST])]) == []


@pytest.mark.parametrize(
    "changed, said",
    [
        ([FIRST, replace(SECOND, output_ids=(9, 8))], "output token 1 is not that of stock"),
        ([FIRST, replace(SECOND, prompt_ids=(1, 2))], "other prompt"),
        ([FIRST], "only in stock"),
        ([FIRST, SECOND, replace(SECOND, index=2)], "only in other"),
    ],
)
def test_a_difference_between_runs_names_the_turn(changed, said):
    (difference,) = differing_outputs([run([FIRST, SECOND]), run(changed, label="other")])
    assert said in difference
    assert difference.startswith("run coder turn")


def test_the_better_stock_variant_is_the_one_with_the_smaller_mean():
    slow, fast = figures(run([FIRST, SECOND])), figures(run([FIRST, SECOND], application_s=[1, 2]))
    assert better_stock({"fcfs": slow, "lpm": fast}) == "lpm"


def test_the_verdict_says_where_stock_wins():
    stock = {"lpm": figures(run([FIRST, SECOND]))}
    slower = figures(run([FIRST, replace(SECOND, host_tokens=3)], application_s=[3.0, 6.0]))
    better, equal, worse = verdict(stock, slower)
    assert better.endswith("better: tokens recomputed -100 %")
    assert "first token of returning turns, mean +0 %" in equal
    assert "application end-to-end, slowest +20 %" in worse


def test_every_figure_of_the_verdict_is_in_exactly_one_line():
    made = figures(run([FIRST, SECOND]))
    lines = verdict({"lpm": made}, made)
    assert [sum(name in line for line in lines) for name, *_ in VERDICT] == [1] * len(VERDICT)
    assert lines[0].endswith("better: nothing") and lines[2].endswith("worse: nothing")


def test_a_busy_machine_is_named_as_a_reason_not_to_compare_times():
    quiet = figures(run([FIRST, SECOND]))
    busy = figures(replace(run([FIRST, SECOND]), others_cpus=1.0))
    assert cautions({"fcfs": quiet, "lpm": quiet}) == []
    (caution,) = cautions({"fcfs": quiet, "lpm": busy})
    assert "lpm" in caution and "1.0 processors" in caution


def test_runs_far_apart_are_to_be_repeated():
    steady = figures(run([FIRST, SECOND]))
    slower = {**steady, "makespan_s": 1.5 * steady["makespan_s"]}
    (caution,) = cautions({"fcfs": steady, "TokenCake": slower})
    assert "TokenCake took" in caution and "repeat it" in caution


def test_the_table_has_a_column_for_each_run_and_marks_the_better_stock():
    stock = {
        "fcfs": figures(run([FIRST, SECOND])),
        "lpm": figures(run([FIRST, SECOND], application_s=[1.0, 2.0])),
    }
    ours = {"TokenCake": figures(run([FIRST, SECOND], application_s=[0.5, 1.0], status=STATUS))}
    out = io.StringIO()
    Console(file=out, width=140).print(side_by_side(stock, ours))
    text = out.getvalue()
    assert "lpm (better)" in text and "fcfs (better)" not in text
    (row,) = [line for line in text.splitlines() if "mean end-to-end" in line]
    assert [cell.strip() for cell in row.split("│")[2:-1]] == [
        "4.00 s",
        "1.50 s",
        "0.75 s",
        "-50 %",
    ]


def test_a_scenario_is_the_same_every_time_and_differs_between_agents():
    one, two = Scenario(), Scenario()
    assert one.tests(1, 2, 1) == two.tests(1, 2, 1)
    assert one.tests(1, 2, 1) != one.tests(1, 2, 2)
    assert one.brief(0) != one.brief(1)


def test_predictions_are_near_the_truth_but_most_are_not_it():
    scenario = Scenario()
    tools = [
        scenario.tests(application, programmer, turn)
        for application in range(scenario.applications)
        for programmer in range(PROGRAMMERS)
        for turn in range(1, scenario.programmer_turns)
    ]
    for tool in tools:
        assert 0.5 <= tool.duration_s <= 6.0
        assert tool.predicted_s == pytest.approx(tool.duration_s, rel=0.21)
    right = sum(tool.predicted_s == tool.duration_s for tool in tools)
    assert right < len(tools) / 4
