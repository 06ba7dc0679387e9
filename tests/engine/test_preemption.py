"""SGLang's preemption by priority, with the extension."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.engine.preemption import run_preempted


@pytest.mark.slow
@pytest.mark.parametrize("applications", [("one", "one", "one"), ("one", "two", "three")])
def test_a_preempted_request_gives_the_same_tokens(tmp_path, applications):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        preempted, ends = pool.submit(run_preempted, tmp_path, applications).result(timeout=300)
    assert preempted == 1
    assert ends[-1] == 1, "the one that was preempted"
