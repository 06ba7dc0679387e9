"""What was learnt of tool calls' lengths, kept in a file across restarts.

The main process owns the file. It learns from the same transitions as the ranks, so they need not
be asked for what they know.
"""

import asyncio
import atexit
import logging
import os
import threading
from pathlib import Path

from tokencake_sglang.agents.table import Change, Transition
from tokencake_sglang.config import ConfigError, TokencakeConfig
from tokencake_sglang.temporal.duration import DurationModel
from tokencake_sglang.temporal.durations import storage
from tokencake_sglang.temporal.returns import learn

logger = logging.getLogger(__name__)

OPTION = "--tokencake-durations-file"
SAVE_INTERVAL_S = 60.0


class DurationsFile:
    """A duration model and its file, which is written when something was learnt.

    Args:
        default_s: the length assumed while nothing is known; the file does not change it.

    Raises:
        ConfigError: the file is there and not one of ours, or could not be written.
    """

    def __init__(self, path: str, default_s: float) -> None:
        self._path = Path(path)
        earlier = _load(self._path, default_s)
        self.durations = earlier or DurationModel(default_s)
        self._was_there = earlier is not None
        self._learnt = self._written = 0
        """How often something was learnt, and how much of that is in the file."""
        self._writing = threading.Lock()
        # An Engine's end tells nobody; a server's calls ``close`` before.
        atexit.register(self.close)

    @property
    def known(self) -> bytes | None:
        """What the ranks have to be told at first: all that is known; None without a file."""
        return self.durations.to_bytes() if self._was_there else None

    def follow(self, transition: Transition, now_s: float) -> None:
        """Learns from what the ranks learn from."""
        learn(self.durations, transition, now_s)
        if transition.change is Change.CALL_FINISHED or transition.ended_stage is not None:
            self._learnt += 1

    async def save(self) -> None:
        """Writes what was learnt since the last time, without keeping the event loop."""
        if self._learnt > self._written:
            await asyncio.to_thread(self._write, self._learnt, self.durations.to_bytes())

    def close(self) -> None:
        """The last save; idempotent."""
        atexit.unregister(self.close)
        if self._learnt > self._written:
            self._write(self._learnt, self.durations.to_bytes())

    def _write(self, learnt: int, content: bytes) -> None:
        with self._writing:
            if learnt <= self._written:
                return  # the last save has overtaken this one
            try:
                storage.write(self._path, content)
                self._written = learnt
            except OSError as error:
                logger.error("%s: cannot write %s: %s", OPTION, self._path, error.strerror)


def check_durations_file(config: TokencakeConfig) -> None:
    """Looks at what can be wrong with the file before the model is loaded.

    Raises:
        ConfigError: it is there and not one of ours, or could not be written.
    """
    if config.durations_file is not None:
        _load(Path(config.durations_file), config.default_call_s)


def _load(path: Path, default_s: float) -> DurationModel | None:
    """None when the file is not there yet."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{OPTION}: cannot write {str(path)!r}: expected a file in a folder that can be written"
        )
    if not path.exists():
        logger.info("tokencake: %s is not there yet: calls' lengths are learnt from nothing", path)
        return None
    try:
        durations = DurationModel.load(path, default_s)
    except ValueError as error:
        raise ConfigError(f"{OPTION}: {error}") from None
    logger.info("tokencake: calls' lengths as learnt before are taken from %s", path)
    return durations
