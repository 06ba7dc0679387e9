"""The scores of requests and agent types, and the partition (``scheduling.py``). Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.rivals.tokencake_repo.graph import Metadata


def request_score(
    declared: Metadata, *, start_offset_s: float, elapsed_s: float, wait_s: float
) -> int:
    """``request_score``: in which order requests are admitted; the highest first.

    Args:
        start_offset_s: when the application began, after the first of all.
        elapsed_s: since the application began.
        wait_s: since the request arrived.
    """
    depth, remaining = declared.depth, declared.remaining_depth
    max_depth = max(depth, declared.max_depth, 1)
    to_go = min(1.0, remaining / max_depth)
    similarity = declared.similarity
    parallel_width = 1 / similarity if 0 < similarity < 1 else 1.0
    graph = (
        100 * declared.importance
        + (15 + 4) * depth  # the second is dependency_depth, the same in all of their data
        + 45 * declared.out_degree
        + 10 * declared.in_degree
        + 20 * similarity
        + 20 * remaining
        + 120 * (parallel_width - 1)
        + 180 * declared.critical
        + 90 * declared.near_completion
        + 20 * bool(declared.join_group)
        + 12 * max(declared.fanout_width - 1, 0)
        - 8 * max(declared.memory_weight - 1, 0)
    )
    time = (
        6 * min(start_offset_s, 60)
        + 5 * min(elapsed_s, 300) * (1 + 0.75 * to_go)
        + 8 * min(max(0.0, wait_s), 180) * (1 + 0.5 * to_go)
        + 5 * min(elapsed_s, 240) * min(1.0, depth / max_depth)
    )
    return int(graph + time)


@dataclass(slots=True)
class TypeHistory:
    """``AgentHistory``: sums over the requests of one agent type; durations in seconds."""

    importance: float = 0.0
    deferrals: int = 0
    preemptions: int = 0
    samples: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    completed: int = 0
    duration_s: float = 0.0
    depth: int = 0
    out_degree: int = 0
    in_degree: int = 0
    elapsed_s: float = 0.0
    remaining: int = 0

    def score(self, importance: float, waiting: int, average_wait_s: float) -> float:
        """``AgentHistory.score``; by it types are critical, and get their part of the reserve."""
        urgency = (
            math.log1p(average_wait_s)
            + math.log1p(waiting)
            + math.log1p(self.deferrals)
            + 1.5 * math.log1p(self.preemptions)
        )
        tokens = (self.input_tokens + self.output_tokens) / max(1, self.samples)
        duration_s = self.duration_s / max(1, self.completed)
        cost = math.log1p(tokens)
        if duration_s > 0 and tokens > 0:
            cost += math.log1p(duration_s) + math.log1p(tokens / duration_s)
        count = max(1, self.samples)
        graph = (
            0.7 * self.depth / count
            + 0.5 * self.out_degree / count
            + 0.25 * self.in_degree / count
            + 0.2 * self.remaining / count
            + 0.1 * min(self.elapsed_s / count, 180)
        )
        return max(1.0, 2 * importance + urgency + 0.5 * cost + graph)


@dataclass(slots=True)
class Partition:
    """``CapacityPlan``: who is critical, and how many tokens are set aside for whom."""

    scores: Mapping[str, float] = field(default_factory=dict)
    reserved: Mapping[str, int] = field(default_factory=dict)
    shared: int = 0

    @property
    def critical(self) -> "Mapping[str, int]":
        """The critical types are those with a reservation, be it empty."""
        return self.reserved


def partition(
    scores: Mapping[str, float],
    importance: Mapping[str, float],
    used: Mapping[str, int],
    total: int,
    reserve_ratio: float,
    critical_ratio: float,
) -> Partition:
    """``partition_capacity``: shares by score and use, whole units by largest remainder."""
    order = sorted(scores, key=lambda kind: (scores[kind], importance[kind], kind), reverse=True)
    critical = sorted(order[: max(1, int(len(order) * critical_ratio))])
    reserve = int(total * reserve_ratio) if critical else 0
    score_sum = sum(scores[kind] for kind in critical)
    used_sum = sum(used.values())
    weights = {}
    for kind in critical:
        by_score = scores[kind] / score_sum
        by_use = used.get(kind, 0) / used_sum if used_sum else 0.0
        weights[kind] = max(by_score, (by_use + by_score) / 2, 1e-6)
    weight_sum = sum(weights.values())
    exact = {kind: reserve * weight / weight_sum for kind, weight in weights.items()}
    counts = {kind: int(share) for kind, share in exact.items()}
    left = reserve - sum(counts.values())
    by_remainder = sorted(
        critical, key=lambda kind: (exact[kind] - counts[kind], kind), reverse=True
    )
    for kind in by_remainder[:left]:
        counts[kind] += 1
    return Partition(dict(scores), counts, total - reserve)


def next_reserve_ratio(ratio: float, usage: float) -> float:
    """Between 5 and 30 %, up a step of 5 % from 75 % usage on, down a step up to 40 %."""
    if usage >= 0.75:
        ratio += 0.05
    elif usage <= 0.40:
        ratio -= 0.05
    return min(0.30, max(0.05, ratio))
