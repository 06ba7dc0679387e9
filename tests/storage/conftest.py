"""A real scheduler with a file storage backend, in a process that has no other scheduler."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scheduler_harness import SchedulerHarness

KV_TOKENS = 2048
PAGE_SIZE = 16
HOST_TOKENS = 3072
"""What is on the device is there as well, so 1,024 tokens of it are room for others."""


class StorageHarness(SchedulerHarness):
    """Reads and writes of storage take real time, in threads: steps are repeated until they ended."""

    directory: Path

    def until(self, happened: Callable[[], bool], limit_s: float = 30.0) -> None:
        end_s = time.monotonic() + limit_s
        while not happened():
            assert time.monotonic() < end_s, "it did not happen in time"
            self.step()

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            super().step()
            time.sleep(0.0005)  # a turn for the threads

    def run(self, *rids: str, limit: int = 0) -> list[list[int]]:
        self.until(lambda: all(rid in self.finished for rid in rids))
        return [self.finished[rid] for rid in rids]

    def flush(self) -> None:
        self.until(self.scheduler.is_fully_idle)
        super().flush()

    def check_accounting(self) -> None:
        self.until(self.scheduler.is_fully_idle)
        super().check_accounting()

    def wait_for_writes(self) -> None:
        """Until everything that is on the host has been written to storage."""
        self.settle()
        self.until(lambda: not self.cache.ongoing_write_through and not self.cache.ongoing_backup)

    def clear_storage(self) -> None:
        self.wait_for_writes()
        for file in self.directory.glob("*.bin"):
            file.unlink()


@pytest.fixture(scope="session")
def scheduler_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageHarness]:
    from tokencake_sglang.platforms.torch_cpu import accelerator_present

    if accelerator_present():
        pytest.skip("meant for the CPU platform")
    directory = tmp_path_factory.mktemp("storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR", str(directory))
        harness = StorageHarness(
            tmp_path_factory.mktemp("model"),
            *("--enable-tokencake", "--tokencake-hold-max", "0.5"),
            *("--hicache-ratio", str(HOST_TOKENS / KV_TOKENS)),
            *("--hicache-storage-backend", "file"),
            *("--hicache-storage-prefetch-policy", "wait_complete"),
            kv_tokens=KV_TOKENS,
            page_size=PAGE_SIZE,
        )
        harness.directory = directory
        yield harness
        harness.clear_storage()


@pytest.fixture
def harness(scheduler_process: StorageHarness) -> Iterator[StorageHarness]:
    """The scheduler, idle and with nothing in any tier before the test."""
    scheduler_process.start_over()
    scheduler_process.clear_storage()
    yield scheduler_process
    scheduler_process.finish_everything()
    scheduler_process.check_accounting()
    assert scheduler_process.cache.pin_count == 0, "a pin was leaked"
    assert not scheduler_process.cache.ongoing_prefetch, "a read was leaked"
