"""What the engine knows of each agent's KV: where its path ends and what is planned for it."""

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent

if TYPE_CHECKING:
    from tokencake_sglang.temporal.returns import Return


def pin_holder(key: AgentKey) -> tuple[str, AgentKey]:
    """Who holds an agent's pin in its partition."""
    return ("pin", key)


def hold_holder(key: AgentKey) -> tuple[str, AgentKey]:
    """Who holds an agent's upload until its request comes."""
    return ("hold", key)


class Residence(StrEnum):
    """Where an agent's path is between two requests; the tree is asked before every action."""

    DEVICE = "device"
    HOST = "host"
    UPLOADING = "uploading"
    HELD = "held"


class Gap(msgspec.Struct, gc=False):
    """What was done for an agent between two requests, for the decision log.

    ``predicted_return_s`` is the last prediction before the calls ended, ``returned_s`` when the
    next request came (None while it has not).
    """

    predicted_return_s: float | None = None
    returned_s: float | None = None
    upload_wanted: bool = False
    upload_due_s: float | None = None
    """When an upload first had to start; what was predicted then may have been revised since."""
    upload_kept_back: str | None = None
    """Why none started when it was due last."""
    uploaded_tokens: int = 0
    released_tokens: int = 0
    fetched_tokens: int = 0
    """Read from storage into the host tier ahead of the return."""
    missing_tokens: int = 0
    """In no tier when the request came: storage may have them."""


class Resident(msgspec.Struct, gc=False):
    """An agent that has KV in the tree. Times are seconds on the main process's clock.

    ``node_ids`` is its path at the last turn's end, root first, ``tokens`` that path's length.
    ``host_only_tokens`` are those that the planner, when it last asked the tree, found on the host
    alone. ``expected`` is when its next request is: None while it has a request, and where nothing is
    known of its next. ``gap`` speaks of the time since its last request; it outlives the gap until
    the next request is admitted, which shows what came of it.
    """

    agent: Agent
    node_ids: tuple[int, ...]
    tokens: int
    residence: Residence = Residence.DEVICE
    host_only_tokens: int = 0
    expected: "Return | None" = None
    gap: "Gap | None" = None

    @property
    def in_gap(self) -> bool:
        """Whether its calls are expected to end, or its next request to come."""
        return self.expected is not None

    @property
    def return_s(self) -> float | None:
        return None if self.expected is None else self.expected.at_s

    @property
    def upload_by_s(self) -> float | None:
        """When its KV should be back on the device; of a critical agent before its return."""
        return None if self.expected is None else self.expected.upload_by_s

    @property
    def leaf_id(self) -> int:
        return self.node_ids[-1]

    @property
    def pin_holder(self) -> tuple[str, AgentKey]:
        return pin_holder(self.agent.key)

    @property
    def hold_holder(self) -> tuple[str, AgentKey]:
        return hold_holder(self.agent.key)
