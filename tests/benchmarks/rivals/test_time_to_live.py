"""Continuum's formulas on worked examples (arXiv 2511.02230v6, eq. 2 and §4.2)."""

import math

import pytest

from benchmarks.rivals.time_to_live import Memoryfulness, default_time_to_live_s, time_to_live_s


@pytest.mark.parametrize(
    "benefit_s, ttl_s",
    [
        (1.0, 0.0),  # 0.5 - 1 < 0
        (4.0, 1.0),  # 2 - 1 = 1, and 3 - 2 is no more
        (30.0, 2.0),  # 22.5 - 2 = 20.5 beats 15 - 1 and 30 - 10
        (41.0, 10.0),  # 41 - 10 = 31 beats 30.75 - 2
    ],
)
def test_time_to_live_is_the_duration_of_greatest_utility(benefit_s, ttl_s):
    assert time_to_live_s([1.0, 1.0, 2.0, 10.0], benefit_s) == ttl_s


def test_cold_start_assumes_durations_of_one_second():
    assert default_time_to_live_s(math.e**3) == pytest.approx(3.0)
    assert default_time_to_live_s(1.0) == 0.0


def test_memoryfulness_is_one_if_all_programs_are_of_one_length():
    memory = Memoryfulness()
    memory.program_ended(4)
    memory.program_ended(4)
    assert memory.eta == pytest.approx(1.0)


def test_memoryfulness_is_the_negative_correlation_of_turns_done_and_left():
    memory = Memoryfulness()
    memory.program_ended(2)
    memory.program_ended(4)
    # (1,1) (1,3) (2,2) (3,1): covariance 11/4 - (7/4)^2 = -5/16, both variances 11/16
    assert memory.eta == pytest.approx(5 / 11)
