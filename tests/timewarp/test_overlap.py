"""SGLang's two loops against the same clock."""

import pytest

from tests.timewarp.runs import batch, ends
from tokencake_sglang.timewarp.forks import run_in_fork

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("host_tokens", [0, 65_536])
def test_overlap_takes_at_most_a_step_overhead_per_step_longer(forking_process, host_tokens):
    """Two waves: the second is admitted into what the first has freed, and nobody idles between."""
    normal, overlap = (
        forking_process(run_in_fork, batch, loop, host_tokens, 12, 8, 8192)
        for loop in (False, True)
    )
    assert normal["makespan_s"] == pytest.approx(normal["forward_s"], rel=1e-9)
    assert overlap["makespan_s"] == pytest.approx(overlap["forward_s"], rel=1e-9)
    allowed_s = overlap["steps"] * overlap["overhead_s"]
    assert normal["makespan_s"] * 0.99 < overlap["makespan_s"] < normal["makespan_s"] + allowed_s


def test_results_are_processed_while_the_next_forward_runs(forking_process):
    *before_last, last = forking_process(run_in_fork, ends, True)
    assert len(before_last) == 3
    assert all(now_s < free_s for now_s, free_s in before_last)
    assert last[0] == last[1]  # nothing is launched for a request that is known to be done


def test_the_normal_loop_launches_only_when_it_has_processed(forking_process):
    seen = forking_process(run_in_fork, ends, False)
    assert len(seen) == 4
    assert all(now_s == free_s for now_s, free_s in seen)
