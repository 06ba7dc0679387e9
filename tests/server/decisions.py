"""A server's decision log as tests read it."""

import json
from pathlib import Path
from typing import Any


class DecisionFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, application: str, agent: str, action: str) -> list[dict[str, Any]]:
        """The agent's decisions of one kind, oldest first."""
        # The last line may be half written.
        lines = self._path.read_text().split("\n")[:-1] if self._path.exists() else []
        wanted = {"application": application, "agent": agent, "action": action}
        decisions = (json.loads(line) for line in lines)
        return [decision for decision in decisions if wanted.items() <= decision.items()]
