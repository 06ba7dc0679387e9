"""The decision log: every action on an agent's KV as a record with its reason."""

import logging
from collections import Counter, deque
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import msgspec

from tokencake_sglang.agents.identity import AgentKey

logger = logging.getLogger(__name__)

RECENT_KEPT = 256


class Action(StrEnum):
    INSURE = "insure"
    """A host copy is being made."""
    RELEASE = "release"
    """Device slots were given up; the host copy stays."""
    DISCARD = "discard"
    """Device slots were given up, copied or not."""
    UPLOAD = "upload"
    """A copy back to the device was started."""
    DROP = "drop"
    """The host tier gave up its copy, of what the device keeps, or of the last there was; a storage
    backend may have one."""
    FETCH = "fetch"
    """A read from storage into the host tier was started, or has ended."""
    HOLD = "hold"
    """An uploaded prefix is pinned until its request comes."""
    UNHOLD = "unhold"
    PIN = "pin"
    """A critical agent's prefix is pinned in its partition."""
    UNPIN = "unpin"
    RETURN = "return"
    """The agent's next request came: what its KV was doing then."""
    DEFER = "defer"
    """Admission left the reserve to critical agents, or a newcomer outside the working set or its
    tenant's quota."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """One line of the log. ``now_s`` is the stamp of the message that led to it."""

    now_s: float
    application: str
    agent: str
    action: Action
    reason: str
    tokens: int
    detail: dict[str, Any] | None = None


class DecisionLog:
    """Counts every decision, keeps the recent ones, and writes them to a file where asked,
    up to the first failure."""

    def __init__(self, path: str | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.recent: deque[Decision] = deque(maxlen=RECENT_KEPT)
        # Open as long as the process lives; line-buffered, so that a crash loses no line.
        self._file: TextIO | None = None
        if path:
            self._file = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def record(
        self,
        now_s: float,
        key: AgentKey,
        action: Action,
        reason: str,
        tokens: int = 0,
        **detail: Any,
    ) -> None:
        decision = Decision(
            now_s, key.application, key.agent, action, reason, tokens, detail or None
        )
        name = name_of(action, reason)
        self.counts[name] += 1
        self.tokens[name] += tokens
        self.recent.append(decision)
        if self._file is not None:
            self._write(self._file, msgspec.json.encode(decision).decode() + "\n")

    def _write(self, file: TextIO, line: str) -> None:
        try:
            file.write(line)
        except OSError as error:
            # A full disk is no reason to stop serving. Not closed: that would write again.
            self._file = None
            logger.error("tokencake: the decision log %s ends here: %s", file.name, error.strerror)

    def count(self, action: Action, reason: str) -> None:
        """Counts what would flood the log if it left a record each time."""
        self.counts[name_of(action, reason)] += 1

    def snapshot(self, recent: int = 32) -> dict[str, Any]:
        """Counts and tokens by ``action.reason``, and the last ``recent`` decisions."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "tokens": dict(sorted(self.tokens.items())),
            "recent": [
                msgspec.structs.asdict(decision) for decision in list(self.recent)[-recent:]
            ],
        }


def name_of(action: Action, reason: str) -> str:
    """What a kind of decision is counted under."""
    return action + "." + reason  # a format string takes ten times as long for an enumeration
