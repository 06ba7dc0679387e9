"""Loads beside the forward under way, on SGLang's real scheduler with overlap."""

import pytest

from tests.timewarp.fenced_loads import watched_loads
from tokencake_sglang.timewarp.forks import run_in_fork

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("page_size", "seed"), [(1, 1), (16, 1)])
def test_what_is_loaded_beside_a_forward_is_none_of_its_slots(forking_process, page_size, seed):
    seen = forking_process(run_in_fork, watched_loads, seed, page_size)
    assert seen["unfenced_hits"] == 0
    assert seen["unfenced_loads"] > seen["fenced_loads"] > 0
    assert min(seen["aborted"], seen["retractions"], seen["chunked_forwards"]) > 10


def test_with_no_fence_some_would_be(forking_process):
    """Or the test above would look at nothing."""
    assert forking_process(run_in_fork, watched_loads, 1, 16, "none")["unfenced_hits"] > 0


def test_without_the_part_every_load_is_fenced_as_sglang_does_it(forking_process):
    seen = forking_process(run_in_fork, watched_loads, 1, 16, "sglang")
    assert seen["unfenced_loads"] == 0 < seen["fenced_loads"]
