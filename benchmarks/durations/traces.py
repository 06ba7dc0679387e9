"""Real and made-up traces of tool calls, as what a caller would have declared and what came."""

import bisect
import csv
import gzip
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from benchmarks.workloads import agentinfer_swebench
from benchmarks.workloads.datasets import SLICES

WEKA = SLICES / "tool_calls_weka.csv.gz"
MINISWE = SLICES / "tool_calls_miniswe.csv.gz"
COLUMNS = ("application", "agent_type", "tool", "start_s", "duration_s", "size", "digest")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One finished call. ``size``: tokens or characters of its arguments; ``digest``: theirs."""

    application: str
    agent_type: str
    tool: str
    start_s: float
    duration_s: float
    size: int | None = None
    digest: str | None = None
    given_s: float | None = None

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s


@dataclass(frozen=True)
class Trace:
    """Calls by start. ``grain_s``: shorter durations are not told apart on the log scale."""

    name: str
    about: str
    calls: tuple[ToolCall, ...]
    grain_s: float
    drawn: bool = False
    """Whether durations were drawn from published numbers instead of recorded."""


def read(path: Path) -> Iterator[ToolCall]:
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            yield ToolCall(
                row["application"],
                row["agent_type"],
                row["tool"],
                float(row["start_s"]),
                float(row["duration_s"]),
                int(row["size"]) if row["size"] else None,
                row["digest"] or None,
            )


def write(path: Path, calls: Iterable[ToolCall]) -> None:
    """Packed so that the same calls give the same bytes."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
    ):
        packed.write((",".join(COLUMNS) + "\n").encode())
        for call in calls:
            values = [getattr(call, column) for column in COLUMNS]
            cells = (
                "" if v is None else f"{v:.10g}" if isinstance(v, float) else v for v in values
            )
            packed.write((",".join(map(str, cells)) + "\n").encode())


def weka() -> Trace:
    """Eight sessions at a time, the next begins when one ends: a server sees them mixed."""
    calls = list(read(WEKA))
    return Trace("weka_claude_code", "Claude Code, gaps in whole seconds", _mixed(calls, 8), 1.0)


def _mixed(calls: list[ToolCall], at_once: int) -> tuple[ToolCall, ...]:
    sessions: dict[str, list[ToolCall]] = {}
    for call in calls:
        sessions.setdefault(call.application, []).append(call)
    free_s = [0.0] * at_once
    shifted = []
    for session in sessions.values():
        start_s = free_s.pop(0)
        shifted += [replace(call, start_s=call.start_s + start_s) for call in session]
        bisect.insort(free_s, start_s + max(call.end_s for call in session))
    return tuple(sorted(shifted, key=attrgetter("start_s")))


def miniswe() -> Trace:
    """The tool is the command's first word; an interval is the model's answer and the tool."""
    return Trace(
        "lmcache_miniswe", "mini-swe-agent, intervals between requests", tuple(read(MINISWE)), 0.1
    )


def swebench() -> Trace:
    """Gaps between an actor's requests; one in which a sub-agent ran is a call of that name."""
    by_actor: dict[tuple[str, str], list[agentinfer_swebench.Record]] = {}
    records = agentinfer_swebench.records()
    for record in records:
        by_actor.setdefault(record.actor, []).append(record)
    begin = records[0].started_at
    calls = []
    for (session, _), requests in by_actor.items():
        ended = requests[0]
        for request in requests[1:]:
            if request.started_at >= ended.finished_at:
                waited = any(
                    other.session_id == session
                    and other.actor_id != request.actor_id
                    and ended.finished_at <= other.started_at
                    and other.finished_at <= request.started_at
                    for other in records
                )
                calls.append(
                    ToolCall(
                        session,
                        ended.actor_role,
                        "subagent" if waited else "tool",
                        (ended.finished_at - begin).total_seconds(),
                        (request.started_at - ended.finished_at).total_seconds(),
                        ended.output_tokens,
                    )
                )
            ended = max(ended, request, key=lambda record: record.finished_at)
    return Trace(
        "agentinfer_swebench",
        "lead and sub-agents on SWE-bench, exact times",
        tuple(sorted(calls, key=attrgetter("start_s"))),
        0.001,
    )


def dags(applications: int = 24, sigma: float = 0.25) -> Trace:
    """The authors' two applications; the declared seconds are means, actual ones are spread."""
    dags = json.loads((SLICES / "tokencake_dags.json").read_text())
    random_ = random.Random("durations/dags")
    calls = []
    for number in range(applications):
        start_s = 60.0 * number
        for name in ("code_writer", "deep_research"):
            for node in dags[name]["nodes"]:
                if not node["tool"]:
                    continue
                declared_s = node["tool_duration_s"]
                duration_s = declared_s * math.exp(random_.gauss(0.0, sigma))
                application, agent_type = f"{name}/{number}", node["agent_type"]
                calls.append(
                    ToolCall(application, agent_type, node["tool"], start_s, duration_s, None, None)
                )
                start_s += duration_s
    return Trace(
        "tokencake_dags",
        f"the paper's applications, declared seconds × lognormal({sigma})",
        tuple(sorted(calls, key=attrgetter("start_s"))),
        0.001,
        drawn=True,
    )


def published(calls: int = 4000) -> Trace:
    """Calls one after another, drawn by TraceLab's shares from its quantiles, log-linear between."""
    with (SLICES / "tool_latency_quantiles.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["source"].startswith("TraceLab")]
    random_ = random.Random("durations/published")
    shares = [int(row["n_calls"]) ** 0.5 for row in rows]  # roots, or nearly all were shell
    start_s, made = 0.0, []
    for row in random_.choices(rows, shares, k=calls):
        points = [
            (level, math.log(float(row[column])))
            for level, column in ((0.25, "p25_s"), (0.5, "p50_s"), (0.9, "p90_s"), (0.99, "p99_s"))
        ]
        (a, first), (b, second) = points[:2]
        points.insert(0, (0.0, first - (second - first) / (b - a) * a))
        (a, first), (b, second) = points[-2:]
        points.append((1.0, second + (second - first) / (b - a) * (1.0 - b)))
        level = random_.random()
        at = bisect.bisect_right([p for p, _ in points], level)
        (a, first), (b, second) = points[at - 1], points[at]
        duration_s = math.exp(first + (second - first) * (level - a) / (b - a))
        made.append(ToolCall("tracelab", "agent", row["tool_class"], start_s, duration_s))
        start_s += duration_s
    return Trace(
        "tracelab_quantiles",
        "drawn from TraceLab's published quantiles per tool",
        tuple(made),
        0.001,
        drawn=True,
    )


def with_estimates(trace: Trace, sigma: float, bias: float = 1.0, seed: int = 0) -> Trace:
    """The caller knows each duration up to a factor: ``bias`` and a lognormal of ``sigma``."""
    random_ = random.Random(f"durations/estimates/{trace.name}/{sigma}/{bias}/{seed}")
    calls = tuple(
        replace(c, given_s=c.duration_s * bias * math.exp(random_.gauss(0.0, sigma)))
        for c in trace.calls
    )
    return replace(trace, calls=calls)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


REAL: tuple[Callable[[], Trace], ...] = (weka, swebench, miniswe)
DRAWN: tuple[Callable[[], Trace], ...] = (published, dags)
