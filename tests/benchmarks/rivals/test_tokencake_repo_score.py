"""The released code's scores and its partition, worked by hand."""

import pytest

from benchmarks.rivals.tokencake_repo.graph import Metadata
from benchmarks.rivals.tokencake_repo.score import (
    TypeHistory,
    next_reserve_ratio,
    partition,
    request_score,
)


def test_the_request_score_is_the_published_sum():
    # programmer_1_repair of code_writer, but for its memory weight of 1.7.
    declared = Metadata(
        importance=10,
        depth=10,
        max_depth=17,
        in_degree=1,
        out_degree=1,
        similarity=1 / 3,
        fanout_width=3,
        critical=True,
        join_group="implementation_review",
    )
    # 1000 importance, 150 + 40 depth, 45 + 10 degrees, 6.67 similarity, 140 remaining, 240
    # parallel, 180 critical, 20 join, 24 fan-out: 1855.67. Then 30 for the offset,
    # 500 * (1 + 0.75 * 7/17) = 654.41, 160 * (1 + 0.5 * 7/17) = 192.94, 500 * 10/17 = 294.12.
    score = request_score(declared, start_offset_s=5, elapsed_s=100, wait_s=20)
    assert score == int(1855.6667 + 30 + 654.4118 + 192.9412 + 294.1176)
    assert score == 3027
    late = request_score(declared, start_offset_s=60, elapsed_s=300, wait_s=180)
    assert late == request_score(declared, start_offset_s=900, elapsed_s=900, wait_s=900)


def test_an_agent_types_score_adds_urgency_cost_and_graph():
    history = TypeHistory(
        deferrals=3,
        preemptions=1,
        samples=2,
        input_tokens=16_000,
        output_tokens=400,
        completed=2,
        duration_s=20.0,
        depth=20,
        out_degree=4,
        in_degree=2,
        elapsed_s=100.0,
        remaining=10,
    )
    # 2 * 5; ln 11 + ln 5 + ln 4 + 1.5 ln 2 = 6.4333; half of ln 8201 + ln 11 + ln 821 =
    # 18.1205; 7 + 1 + 0.25 + 1 + 5 = 14.25.
    assert history.score(5, 4, 10.0) == pytest.approx(10 + 6.4333 + 9.0603 + 14.25, abs=1e-3)
    assert TypeHistory().score(0, 0, 0.0) == 1.0


def test_the_partition_weighs_score_and_use_and_rounds_by_largest_remainder():
    scores = {"a": 6.0, "b": 3.0, "c": 1.0, "d": 0.5}
    used = {"c": 50, "d": 50}
    # Critical: 3 of 4. Weights 0.6, 0.3 and max(0.1, (0.5 + 0.1) / 2) of 1.2.
    plan = partition(scores, scores, used, 1000, 0.10, 0.75)
    assert plan.reserved == {"a": 50, "b": 25, "c": 25}
    assert plan.shared == 900
    assert partition(scores, scores, used, 1010, 0.10, 0.75).reserved == {"a": 51, "b": 25, "c": 25}
    # 51.5, 25.75 and 25.75: the two largest remainders get one each.
    assert partition(scores, scores, used, 1030, 0.10, 0.75).reserved == {"a": 51, "b": 26, "c": 26}
    assert set(partition({"a": 1.0}, {"a": 0.0}, {}, 100, 0.1, 0.75).critical) == {"a"}


@pytest.mark.parametrize(
    ("ratio", "usage", "expected"),
    [(0.05, 0.75, 0.10), (0.10, 0.5, 0.10), (0.10, 0.40, 0.05), (0.30, 1.0, 0.30)],
)
def test_the_reserve_moves_by_five_percent_within_five_and_thirty(ratio, usage, expected):
    assert next_reserve_ratio(ratio, usage) == pytest.approx(expected)
