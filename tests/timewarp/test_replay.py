"""A whole replay in virtual time, twice."""

import pytest

from tests.timewarp.runs import code_writer
from tokencake_sglang.timewarp.forks import run_in_fork
from tokencake_sglang.timewarp.ranks import Rank


@pytest.mark.slow
def test_the_same_run_comes_out_the_same_to_the_last_digit(forking_process):
    run = (run_in_fork, code_writer, Rank(), 2, 16_384, True)
    first, second = forking_process(*run), forking_process(*run)
    assert first == second
    assert first["totals"]["output_tokens"] == 2 * 6_464
    assert first["transfers"]["to_device_late_bytes"] > 0, "the pool was large enough"
    assert first["transfers"]["exposed_wait_s"] == pytest.approx(first["totals"]["load_wait_s"])
