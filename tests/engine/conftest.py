"""One real scheduler with the extension for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.engine.scenarios import PAGE_SIZE
from tests.scheduler_harness import SchedulerHarness

KV_TOKENS = 2048


@pytest.fixture(scope="session")
def scheduler_process(tmp_path_factory: pytest.TempPathFactory) -> SchedulerHarness:
    return SchedulerHarness(
        tmp_path_factory.mktemp("model"),
        *("--enable-tokencake", "--tokencake-hold-max", "0.5", "--tokencake-reserve-max", "0.5"),
        *("--tokencake-quotas", "small=0.1", "--tokencake-upload-piece-tokens", "256"),
        *("--tokencake-tenants", "heavy=3", "--tokencake-untagged-first-token-s", "20"),
        *("--tokencake-tenant-quotas", "half=0.5", "--hicache-ratio", "4"),
        kv_tokens=KV_TOKENS,
        page_size=PAGE_SIZE,
    )


@pytest.fixture
def harness(scheduler_process: SchedulerHarness) -> Iterator[SchedulerHarness]:
    """The scheduler, idle and empty before the test, and with balanced books after it."""
    scheduler_process.start_over()
    yield scheduler_process
    scheduler_process.finish_everything()
    scheduler_process.check_accounting()
    assert scheduler_process.cache.pin_count == 0, "a pin was leaked"
