"""What a policy is told on the real scheduler."""

import pytest

from tests.engine.told import run_told
from tests.timewarp.conftest import forking_process  # noqa: F401 (a fixture)
from tokencake_sglang.timewarp.forks import run_in_fork

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("overlap", [False, True])
def test_a_request_is_queued_admitted_and_finished_once_and_nothing_is_copied_unasked(
    forking_process,  # noqa: F811
    overlap,
):
    told, backups = forking_process(run_in_fork, run_told, overlap)
    tagged, others = ("first", "second"), tuple(f"other-{number}" for number in range(6))
    expected = {(what, rid): 1 for what in ("queued", "admitted") for rid in (*tagged, *others)}
    assert told == expected | {("finished", rid): 1 for rid in tagged}
    assert backups == 0
