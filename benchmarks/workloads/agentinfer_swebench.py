"""AgentInfer's SWE-bench sessions (package ``agentinfer`` 0.2.0): short gaps, exact times.

A session is an application, an actor an agent. The data hold lengths and times, no text. Chosen:

- A request follows the actor's request that ended last before it began. One that began while the
  actor's others still ran (title calls) follows what those follow, or is a root.
- Its prompt is the one it follows, then that one's output, then new tokens. When it is too short
  to hold the output (by at most 7 tokens, in 7 requests) it is the prompt it follows and new
  tokens; when it is shorter than that prompt, the actor's head and new tokens.
- Heads are shared between sessions: 19,469 tokens for leads, the least distance between a session's
  title call and the prompt beside it; 7,876 for sub-agents, the least distance between a
  sub-agent's first prompt and the output that spawned it. Prompts shorter than the head are new.
- Every gap is a tool call of unknown tool, without a declared time. A gap in which sub-agents ran
  is a call that lasts until they are done; no such gap has more than one.
- Sessions begin when they were recorded to, which was when others ended: at most four at once.
- The one failed request (no token counts) is left out.
"""

import gzip
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from benchmarks.workloads import datasets
from tokencake_sglang.replay import tokens
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Header, Request, ToolCall, Workload

DATA = datasets.SLICES / "agentinfer_swebench.jsonl.gz"
LEAD_HEAD_TOKENS = 19_469
SUBAGENT_HEAD_TOKENS = 7_876
TOOL = "tool"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    session_id: str
    actor_id: str
    actor_role: str
    started_at: datetime
    finished_at: datetime
    status: str
    input_tokens: int | None
    output_tokens: int | None

    @property
    def actor(self) -> tuple[str, str]:
        return self.session_id, self.actor_id


def records(path: Path = DATA) -> list[Record]:
    """All requests, failed ones included, by their start."""
    packed = path.read_bytes()
    lines = gzip.decompress(packed) if path.suffix == ".gz" else packed
    decoder = msgspec.json.Decoder(Record)
    return sorted(decoder.decode_lines(lines), key=lambda record: record.started_at)


def load(path: Path = DATA) -> Workload:
    usable = [r for r in records(path) if r.status == "success" and r.input_tokens is not None]
    header = Header(
        name="agentinfer_swebench",
        source="agentinfer 0.2.0, agentbench/data/agentinfer_trace_requests.jsonl",
        licence="Apache-2.0",
    )
    begin = usable[0].started_at
    by_session: dict[str, list[Record]] = {}
    for record in usable:
        by_session.setdefault(record.session_id, []).append(record)
    return Workload(
        header,
        (request for session in by_session.values() for request in _session(session, begin)),
    )


def _session(session: Sequence[Record], begin: datetime) -> Iterable[Request]:
    actors: dict[str, list[Record]] = {}
    for record in session:
        actors.setdefault(record.actor_id, []).append(record)
    ids = {
        id(record): f"{record.session_id}/{actor}/{index}"
        for actor, calls in actors.items()
        for index, record in enumerate(calls)
    }
    before = {id(r): _last_before(actors[r.actor_id], r) for r in session}
    following: dict[int, list[Record]] = {}
    for record in session:
        previous = before[id(record)]
        if previous is not None:
            following.setdefault(id(previous), []).append(record)
    parents = {
        actor: _last_before(actors["lead"], calls[0])
        for actor, calls in actors.items()
        if calls[0].actor_role == "subagent"
    }

    def call(record: Record) -> ToolCall | None:
        if id(record) not in following:
            return None
        next_s = min(_seconds(record.finished_at, f.started_at) for f in following[id(record)])
        awaited = [
            calls[-1]
            for actor, calls in actors.items()
            if parents.get(actor) is record
            and _seconds(record.finished_at, calls[-1].finished_at) <= next_s
        ]
        if not awaited:
            return ToolCall(tool=TOOL, wait_s=next_s)
        last_s = max(_seconds(record.finished_at, last.finished_at) for last in awaited)
        return ToolCall(
            tool="subagent",
            wait_s=round(next_s - last_s, 6),
            until=tuple(ids[id(last)] for last in awaited),
        )

    texts: dict[int, tuple[tuple[Span, ...], Span]] = {}
    for record in session:
        name = ids[id(record)]
        previous = before[id(record)]
        parent = parents.get(record.actor_id) if record is actors[record.actor_id][0] else None
        delay_s = 0.0
        if previous is not None:
            first = min(f.started_at for f in following[id(previous)])
            delay_s = _seconds(first, record.started_at)
        elif parent is not None:
            delay_s = _seconds(parent.finished_at, record.started_at)
        texts[id(record)] = _text(name, record, texts[id(previous)] if previous else None)
        prompt, output = texts[id(record)]
        yield Request(
            request_id=name,
            application=record.session_id,
            agent=record.actor_id,
            agent_type=record.actor_role,
            arrival_s=(
                _seconds(begin, record.started_at) if previous is None and parent is None else None
            ),
            wait_for=(ids[id(previous)],) if previous is not None else (),
            spawned_by=ids[id(parent)] if parent is not None else None,
            delay_s=delay_s,
            prompt=prompt,
            output=(output,),
            call=call(record),
        )


def _last_before(calls: Iterable[Record], record: Record) -> Record | None:
    """The call that ended last before ``record`` began."""
    ended = [call for call in calls if call.finished_at <= record.started_at]
    return max(ended, key=lambda call: call.finished_at, default=None)


def _seconds(first: datetime, then: datetime) -> float:
    return round((then - first).total_seconds(), 6)


def _text(
    name: str, record: Record, previous: tuple[tuple[Span, ...], Span] | None
) -> tuple[tuple[Span, ...], Span]:
    assert record.input_tokens is not None and record.output_tokens is not None
    head_tokens = LEAD_HEAD_TOKENS if record.actor_role == "lead" else SUBAGENT_HEAD_TOKENS
    kept: tuple[Span, ...] = (Span(f"agentinfer/head/{record.actor_role}", 0, head_tokens),)
    if previous is not None:
        prompt, output = previous
        if record.input_tokens >= tokens.length(prompt) + output.length:
            kept = (*prompt, output)
        elif record.input_tokens >= tokens.length(prompt):
            kept = prompt
    if tokens.length(kept) > record.input_tokens:
        kept = ()
    new = Span(f"{name}/input", 0, record.input_tokens - tokens.length(kept))
    return tokens.joined((*kept, new)), Span(f"{name}/output", 0, record.output_tokens)
