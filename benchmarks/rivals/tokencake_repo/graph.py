"""What the authors' client declares of every request, derived from the workflow."""

from dataclasses import dataclass

from tokencake_sglang.agents.workflow import Step, Workflow

NEAR_COMPLETION_DEPTH = 3
"""Steps with no more levels than this to go are near completion, in the authors' data set."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """``vllm_xargs.tokencake`` of a request. The defaults are an undeclared request's.

    ``depth`` and ``max_depth`` count the node that only starts an application, and the one that
    only ends it. ``similarity`` is one over the number of parallel agents that do the same.
    ``memory_weight`` is hand-written in the data set (1.0 to 2.2, so at most 10 points of a
    score in the thousands) and cannot be derived: 1 throughout.
    """

    importance: float = 0.0
    depth: int = 0
    max_depth: int = 0
    in_degree: int = 0
    out_degree: int = 0
    similarity: float = 0.0
    fanout_width: int = 0
    memory_weight: float = 1.0
    critical: bool = False
    near_completion: bool = False
    join_group: str = ""
    offload_eligible: bool = True

    @property
    def remaining_depth(self) -> int:
        """As the authors' client says it: levels to the end, on whatever branch."""
        return max(0, self.max_depth - self.depth)


UNDECLARED = Metadata()


def declared(workflow: Workflow) -> dict[str, Metadata]:
    """Request id → metadata. Reproduces ``conversation-tools.json`` on code_writer's graph.

    Rules found in that file: importance is the depth; an agent in a tool call is eligible when
    somebody continues from it; agents on a level of more than one belong to the next join.
    """
    found: dict[str, Metadata] = {}
    for name, steps in workflow.by_application.items():
        found.update(_application(name, steps, workflow))
    return found


def _application(name: str, steps: tuple[Step, ...], workflow: Workflow) -> dict[str, Metadata]:
    inside = {step.rid for step in steps}
    before = {step.rid: [rid for rid in step.wait_for if rid in inside] for step in steps}
    after = {
        step.rid: [rid for rid in workflow.successors[step.rid] if rid in inside] for step in steps
    }
    level = {step.rid: workflow.depth[step.rid] for step in steps}
    level_width: dict[int, int] = {}
    alike: dict[tuple[int, str], int] = {}
    for step in steps:
        place = level[step.rid], step.agent_type
        level_width[place[0]] = level_width.get(place[0], 0) + 1
        alike[place] = alike.get(place, 0) + 1
    max_depth = max(level.values()) + 4  # 0 becomes 2; theirs is one above the closing node
    fanout = max(len(rids) for rids in after.values())
    join = _next_joins(steps, before, after, level)
    return {
        step.rid: Metadata(
            importance=level[step.rid] + 2,
            depth=level[step.rid] + 2,
            max_depth=max_depth,
            in_degree=max(1, len(before[step.rid])),
            out_degree=max(1, len(after[step.rid])),
            similarity=1 / alike[level[step.rid], step.agent_type],
            fanout_width=fanout,
            critical=step.critical,
            near_completion=max_depth - level[step.rid] - 2 <= NEAR_COMPLETION_DEPTH,
            join_group=f"{name}/{join[step.rid]}" if level_width[level[step.rid]] > 1 else "",
            offload_eligible=step.tool is not None and bool(after[step.rid]),
        )
        for step in steps
    }


def _next_joins(
    steps: tuple[Step, ...],
    before: dict[str, list[str]],
    after: dict[str, list[str]],
    level: dict[str, int],
) -> dict[str, int]:
    """Step → the level of the nearest join below it; the level below the last is the end."""
    end = max(level.values()) + 1
    found: dict[str, int] = {}
    for step in sorted(steps, key=lambda step: -level[step.rid]):
        found[step.rid] = min(
            (level[rid] if len(before[rid]) > 1 else found[rid] for rid in after[step.rid]),
            default=end,
        )
    return found
