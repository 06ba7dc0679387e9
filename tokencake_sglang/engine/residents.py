"""What the engine knows of each agent's KV: where its path ends and what is planned for it."""

from dataclasses import dataclass
from enum import StrEnum

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent


def pin_holder(key: AgentKey) -> tuple[str, AgentKey]:
    """Who holds an agent's pin in its partition."""
    return ("pin", key)


def hold_holder(key: AgentKey) -> tuple[str, AgentKey]:
    """Who holds an agent's upload, or its host copy, until its request comes."""
    return ("hold", key)


class Residence(StrEnum):
    """Where the exclusive part of an agent's path is, as far as the planner moved it.

    SGLang's own eviction may move it as well; the tree is asked before every action.
    """

    DEVICE = "device"
    HOST = "host"
    UPLOADING = "uploading"
    HELD = "held"


@dataclass(slots=True)
class Gap:
    """What was done for an agent between two requests, for the decision log.

    ``predicted_return_s`` is the last prediction before the calls ended, ``returned_s`` when the
    next request came (None while it has not).
    """

    predicted_return_s: float | None = None
    returned_s: float | None = None
    upload_wanted: bool = False
    uploaded_tokens: int = 0
    released_tokens: int = 0


@dataclass(slots=True)
class Resident:
    """An agent that has KV in the tree. Times are seconds on the main process's clock.

    ``node_ids`` is its path at the last turn's end, root first, ``tokens`` that path's length.
    ``return_s`` is when its next request is expected: None while it has a request or nothing is
    known of its next, infinite once it has finished. ``gap`` speaks of the time since its last
    request; it outlives the gap until the next request is admitted, which shows what came of it.
    """

    agent: Agent
    node_ids: tuple[int, ...]
    tokens: int
    residence: Residence = Residence.DEVICE
    return_s: float | None = None
    gap: "Gap | None" = None

    @property
    def leaf_id(self) -> int:
        return self.node_ids[-1]

    @property
    def pin_holder(self) -> tuple[str, AgentKey]:
        return pin_holder(self.agent.key)

    @property
    def hold_holder(self) -> tuple[str, AgentKey]:
        return hold_holder(self.agent.key)
