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
class Resident:
    """An agent that has KV in the tree. Times are seconds on the main process's clock.

    ``node_ids`` is its path at the last turn's end, root first, ``tokens`` that path's length.
    ``return_s`` is when its next request is expected: None while it has a request or nothing is
    known of its next, infinite once it has finished. The ``gap_*`` fields speak of the time since
    its last request only.
    """

    agent: Agent
    node_ids: tuple[int, ...]
    tokens: int
    residence: Residence = Residence.DEVICE
    return_s: float | None = None
    gap_upload_wanted: bool = False
    gap_upload_tokens: int = 0
    gap_release_tokens: int = 0

    @property
    def leaf_id(self) -> int:
        return self.node_ids[-1]

    @property
    def pin_holder(self) -> tuple[str, AgentKey]:
        return pin_holder(self.agent.key)

    @property
    def hold_holder(self) -> tuple[str, AgentKey]:
        return hold_holder(self.agent.key)

    def end_gap(self) -> None:
        """Forgets the gap: its request came, or nobody expects one any more."""
        self.residence = Residence.DEVICE
        self.return_s = None
        self.gap_upload_wanted = False
        self.gap_upload_tokens = 0
        self.gap_release_tokens = 0
