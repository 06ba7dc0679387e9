"""What an application declares of itself: its requests as steps, and which follows which."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokencake_sglang.agents.identity import AgentKey


@dataclass(frozen=True, slots=True)
class Step:
    """One request of an application.

    ``rid`` is the id the request will have. ``wait_for`` are the steps that must be settled
    before it: ended, and returned from the tool call they stop in. ``declared_tool_s`` is the
    caller's estimate for the call in which this step stops, ``tool_s`` the time it will really
    take, which only an oracle may read. ``pause_s`` passes after ``wait_for`` before the step is
    sent. ``reuses`` says for earlier steps how many tokens of their prompt and output this step's
    prompt begins with.
    """

    rid: str
    key: AgentKey | None
    application: str
    agent_type: str
    critical: bool
    wait_for: tuple[str, ...]
    prompt_tokens: int
    output_tokens: int
    tool: str | None = None
    declared_tool_s: float | None = None
    tool_s: float = 0.0
    pause_s: float = 0.0
    reuses: Mapping[str, int] | None = None


class Workflow:
    """The steps of all applications, in the order in which they were declared."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = {step.rid: step for step in steps}

    @functools.cached_property
    def successors(self) -> Mapping[str, tuple[str, ...]]:
        """Step → the steps that wait for it, in order of declaration."""
        found: dict[str, list[str]] = {rid: [] for rid in self.steps}
        for step in self.steps.values():
            for rid in step.wait_for:
                found[rid].append(step.rid)
        return {rid: tuple(after) for rid, after in found.items()}

    @functools.cached_property
    def by_application(self) -> Mapping[str, tuple[Step, ...]]:
        found: dict[str, list[Step]] = {}
        for step in self.steps.values():
            found.setdefault(step.application, []).append(step)
        return {name: tuple(steps) for name, steps in found.items()}

    @functools.cached_property
    def depth(self) -> Mapping[str, int]:
        """Step → how many steps stand before it on the longest way within its application."""
        return self._longest(lambda step: step.wait_for)

    @functools.cached_property
    def remaining_depth(self) -> Mapping[str, int]:
        """Step → how many steps follow it on the longest way within its application."""
        return self._longest(lambda step: self.successors[step.rid])

    def _longest(self, neighbours) -> dict[str, int]:
        """Longest chains, without recursion: sessions can be thousands of steps long."""
        length: dict[str, int] = {}
        for start in self.steps:
            stack = [start]
            while stack:
                step = self.steps[stack[-1]]
                inside = [
                    rid
                    for rid in neighbours(step)
                    if self.steps[rid].application == step.application
                ]
                missing = [rid for rid in inside if rid not in length]
                if missing:
                    stack.extend(missing)
                    continue
                stack.pop()
                length[step.rid] = max((length[rid] + 1 for rid in inside), default=0)
        return length
