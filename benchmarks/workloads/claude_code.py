"""Claude Code sessions captured by WEKA (``callanjfox/kv-cache-tester``), sub-agents included.

A session is an application; its main loop is the agent ``main``, its sub-agents have their own
names. The recorded hash ids say which prompts share which prefix in blocks of 64 tokens. Lengths
are the recorded ones, and gaps are the recorded ones between calls, not between start times.

Chosen where the data are silent:

- Blocks are the tokens of one segment a session, 64 for each id; the partial last block is what the
  next prompt that begins with this one has there, else tokens of its own.
- Output is what the next prompt of the same agent that begins with this prompt contains right after
  it, when that prompt is long enough to contain it all; else tokens of its own. (Thinking is
  generated and not sent again, so shorter continuations are common.)
- The first ``tool_tokens + system_tokens`` of a prompt, in whole blocks, are the same for all agents
  of all sessions in which both numbers are the same. Where the ids say that agents of one session
  share blocks, those come first.
- A call that stops for a tool and is followed by a tool result is a tool call of unknown tool; any
  other gap is a pause. No prediction is declared, and no agent is marked critical.
- A call without output (10) has one token, for no server ends a request with none.
- The 52 calls without ``think_time`` follow calls without server time: their gap is the distance of
  the start times, an upper bound.
"""

import bisect
import gzip
import itertools
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.workloads import datasets
from tokencake_sglang.replay import tokens
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Header, Request, ToolCall, Workload

DATA = datasets.path("weka_claude_code/sessions.jsonl.gz", "weka_claude_code_slice.jsonl.gz")
SOURCE = (
    "callanjfox/kv-cache-tester traces/ at 94f6046dfd9c0c8bc0cdb24a5aa6579bac8669bf, "
    "every second session, hash ids run-length encoded"
)
BLOCK = 64
MAIN = "main"
TOOL = "tool"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A call (``type`` "n" or "s") or, between calls, a sub-agent that the call before spawned."""

    t: float
    type: str
    prompt_tokens: int = msgspec.field(name="in", default=0)
    output_tokens: int = msgspec.field(name="out", default=0)
    hash_runs: tuple[tuple[int, int], ...] = ()
    input_types: tuple[str, ...] = ()
    stop: str = ""
    api_time: float | None = None
    think_time: float | None = None
    agent_id: str = ""
    subagent_type: str = ""
    status: str = ""
    duration_ms: float | None = None
    tool_tokens: int = 0
    system_tokens: int = 0
    requests: "tuple[Entry, ...]" = ()

    @property
    def end_s(self) -> float:
        return self.t + (self.api_time or 0.0)

    @property
    def awaited(self) -> bool:
        """Whether the parent waits for this sub-agent."""
        return self.status == "completed"

    @property
    def started_s(self) -> float:
        """When this sub-agent began: for one that is awaited, ``t`` is when it had completed."""
        return self.t - self.duration_ms / 1000 if self.duration_ms is not None else self.t


class Session(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    tool_tokens: int
    system_tokens: int
    requests: tuple[Entry, ...]

    @property
    def main(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.requests if entry.type != "subagent")

    @property
    def subagents(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.requests if entry.type == "subagent")

    @property
    def calls(self) -> Iterator[Entry]:
        yield from self.main
        for subagent in self.subagents:
            yield from subagent.requests

    def first(self, count: int) -> "Session":
        """The session up to its main agent's call number ``count``."""
        kept = itertools.accumulate(entry.type != "subagent" for entry in self.requests)
        requests = [e for e, number in zip(self.requests, kept, strict=True) if number <= count]
        while requests and requests[-1].type == "subagent":
            requests.pop()
        return msgspec.structs.replace(self, requests=tuple(requests))


def sessions(path: Path = DATA) -> Iterator[Session]:
    decoder = msgspec.json.Decoder(Session)
    with gzip.open(path, "rb") as file:
        for line in file:
            yield decoder.decode(line)


def load(
    path: Path = DATA,
    *,
    select: Collection[str] | None = None,
    count: int | None = None,
    seed: int | None = None,
    max_prompt_tokens: int | None = None,
    max_calls: int | None = None,
    max_gap_s: float | None = None,
) -> Workload:
    """Sessions that all begin at 0; ``arrivals`` spreads them or keeps a number of them under way.

    Args:
        select: ids of the sessions to take; all by default.
        count: at most so many, the first of the file, or with a ``seed`` a random choice.
        max_prompt_tokens: leaves out sessions in which a prompt with its output is longer.
        max_calls: cuts every session after so many calls of its main agent (before the choice by
            length).
        max_gap_s: shortens longer pauses and tool calls to this. The recorded ones include nights
            and unanswered permission prompts. Waits for sub-agents are as long as those take.
    """
    chosen = []
    for session in sessions(path):
        if select is not None and session.id not in select:
            continue
        if max_calls is not None:
            session = session.first(max_calls)
        longest = max((e.prompt_tokens + e.output_tokens for e in session.calls), default=0)
        if max_prompt_tokens is None or longest <= max_prompt_tokens:
            chosen.append(session)
    if select is not None and max_prompt_tokens is None:
        missing = set(select) - {session.id for session in chosen}
        if missing:
            raise ValueError(f"select: {path} has no session {', '.join(sorted(missing))}")
    if count is not None and count < len(chosen):
        if seed is None:
            chosen = chosen[:count]
        else:
            picked = random.Random(f"sessions/{seed}").sample(range(len(chosen)), count)
            chosen = [chosen[index] for index in sorted(picked)]
    options = {
        "data": path.name,
        "count": count,
        "seed": seed,
        "max_prompt_tokens": max_prompt_tokens,
        "max_calls": max_calls,
        "max_gap_s": max_gap_s,
    }
    header = Header(
        name="claude_code",
        source=SOURCE,
        licence="Apache-2.0",
        block_size=BLOCK,
        options={name: value for name, value in options.items() if value is not None},
    )
    requests = (request for session in chosen for request in requests_of(session))
    if max_gap_s is not None:
        requests = (_shortened(request, max_gap_s) for request in requests)
    return Workload(header, requests)


def _shortened(request: Request, max_gap_s: float) -> Request:
    call = request.call
    if call is not None and not call.until:
        call = msgspec.structs.replace(call, wait_s=min(call.wait_s, max_gap_s))
    return msgspec.structs.replace(request, delay_s=min(request.delay_s, max_gap_s), call=call)


def requests_of(session: Session) -> Iterator[Request]:
    """One session as requests: its main agent's, then its sub-agents', each in order."""
    prefixes = _Prefixes(session)
    spawned: dict[int, list[Entry]] = {}
    calls = 0
    for entry in session.requests:
        if entry.type == "subagent":
            spawned.setdefault(calls - 1, []).append(entry)
        else:
            calls += 1
    yield from _agent(session, prefixes, MAIN, MAIN, session.main, spawned, None, 0.0)
    for index, subagents in spawned.items():
        parent = session.main[index]
        for subagent in subagents:
            yield from _agent(
                session,
                prefixes,
                subagent.agent_id,
                subagent.subagent_type,
                subagent.requests,
                {},
                _request_id(session, MAIN, index),
                round(max(subagent.started_s - parent.end_s, 0.0), 3),
            )


def _agent(
    session: Session,
    prefixes: "_Prefixes",
    agent: str,
    agent_type: str,
    calls: Sequence[Entry],
    spawned: dict[int, list[Entry]],
    spawned_by: str | None,
    delay_s: float,
) -> Iterator[Request]:
    """The agent's calls, each after the one before it; ``delay_s`` is the first one's."""
    texts = _texts(f"{session.id}/{agent}", calls, prefixes)
    for index, (entry, (prompt, output)) in enumerate(zip(calls, texts, strict=True)):
        following = calls[index + 1] if index + 1 < len(calls) else None
        gap_s = _gap_s(entry, following) if following is not None else 0.0
        call = _subagent_call(session, entry, following, spawned.get(index, ()))
        if call is None and following is not None and _is_tool_gap(entry, following):
            call = ToolCall(tool=TOOL, wait_s=gap_s)
        first = index == 0
        yield Request(
            request_id=_request_id(session, agent, index),
            application=session.id,
            agent=agent,
            agent_type=agent_type,
            arrival_s=0.0 if first and spawned_by is None else None,
            wait_for=() if first else (_request_id(session, agent, index - 1),),
            spawned_by=spawned_by if first else None,
            delay_s=delay_s,
            prompt=prompt,
            output=output,
            call=call,
        )
        delay_s = 0.0 if call is not None else gap_s


def _request_id(session: Session, agent: str, index: int) -> str:
    return f"{session.id}/{agent}/{index}"


def _is_tool_gap(entry: Entry, following: Entry) -> bool:
    return entry.stop == "tool_use" and "tool_result" in following.input_types


def _gap_s(entry: Entry, following: Entry) -> float:
    if following.think_time is not None:
        return max(following.think_time, 0.0)
    return max(following.t - entry.end_s, 0.0)


def _subagent_call(
    session: Session, entry: Entry, following: Entry | None, subagents: Iterable[Entry]
) -> ToolCall | None:
    """The wait for the sub-agents that ``entry`` spawned, if it waits for any."""
    awaited = [subagent for subagent in subagents if subagent.awaited and subagent.requests]
    if not awaited:
        return None
    kinds = {subagent.subagent_type for subagent in awaited}
    last_s = max(subagent.started_s + subagent.requests[-1].end_s for subagent in awaited)
    return ToolCall(
        tool=f"subagent:{kinds.pop()}" if len(kinds) == 1 else "subagent",
        wait_s=round(max(following.t - last_s, 0.0), 3) if following is not None else 0.0,
        until=tuple(
            _request_id(session, subagent.agent_id, len(subagent.requests) - 1)
            for subagent in awaited
        ),
    )


class _Prefixes:
    """Prompts of a session as spans, with the heads that other sessions have too."""

    def __init__(self, session: Session) -> None:
        self._segment = f"{session.id}/blocks"
        self._heads: dict[str, tuple[Span, ...]] = {}
        self._claim(session.tool_tokens, session.system_tokens, session.main)
        for subagent in session.subagents:
            self._claim(subagent.tool_tokens, subagent.system_tokens, subagent.requests)

    def _claim(self, tool_tokens: int, system_tokens: int, calls: Sequence[Entry]) -> None:
        """The head of the agent's usual prompt becomes the shared one, once a session."""
        segment = f"claude-code/head/{tool_tokens}+{system_tokens}"
        starts = [call.hash_runs[0][0] for call in calls if call.hash_runs]
        if segment in self._heads or not starts:
            return
        usual = max(starts, key=starts.count)
        call = next(c for c in calls if c.hash_runs and c.hash_runs[0][0] == usual)
        head = (tool_tokens + system_tokens) // BLOCK * BLOCK
        self._heads[segment] = tokens.cut(self._blocks(call), 0, head)

    def _blocks(self, call: Entry) -> tuple[Span, ...]:
        return tuple(
            Span(self._segment, first * BLOCK, count * BLOCK) for first, count in call.hash_runs
        )

    def of(self, call: Entry) -> tuple[Span, ...]:
        """The whole blocks of the call's prompt.

        What a block holds is decided by its id alone: the first head that contains it, or the
        session's own tokens. So equal ids stay equal tokens.
        """
        own = self._blocks(call)
        shared: list[Span] = []
        covered = 0
        for segment, head in self._heads.items():
            common = tokens.common_prefix(own, head)
            if common > covered:
                shared.append(Span(segment, covered, common - covered))
                covered = common
        return tokens.joined((*shared, *tokens.cut(own, covered)))


def _texts(
    name: str, calls: Sequence[Entry], prefixes: _Prefixes
) -> list[tuple[tuple[Span, ...], tuple[Span, ...]]]:
    """Prompt and output of every call of an agent, last call first decided."""
    ends = [list(itertools.accumulate(count for _, count in call.hash_runs)) for call in calls]
    texts: list[tuple[tuple[Span, ...], tuple[Span, ...]]] = [((), ())] * len(calls)
    for index in range(len(calls) - 1, -1, -1):
        call = calls[index]
        blocks = ends[index][-1] if ends[index] else 0
        output_tokens = max(call.output_tokens, 1)
        begin, end = blocks * BLOCK, call.prompt_tokens
        tail: tuple[Span, ...] = (Span(f"{name}/{index}", 0, end - begin),)
        output: tuple[Span, ...] = (Span(f"{name}/{index}", end - begin, output_tokens),)
        following = _continuation(calls, ends, index)
        if following is not None:
            prompt = texts[following][0]
            tail = tokens.cut(prompt, begin, end)
            if calls[following].prompt_tokens >= end + output_tokens:
                output = tokens.cut(prompt, end, end + output_tokens)
        texts[index] = (tokens.joined((*prefixes.of(call), *tail)), tokens.joined(output))
    return texts


def _continuation(calls: Sequence[Entry], ends: list[list[int]], index: int) -> int | None:
    """The first later call whose prompt is longer and begins with all whole blocks of this one's.

    Ids are prefix-chained: the same id at the last whole block means the same blocks before it.
    """
    if not ends[index]:
        return None
    blocks = ends[index][-1]
    last = _block_id(calls[index], ends[index], blocks - 1)
    for other in range(index + 1, len(calls)):
        if (
            calls[other].prompt_tokens > calls[index].prompt_tokens
            and ends[other]
            and ends[other][-1] >= blocks
            and _block_id(calls[other], ends[other], blocks - 1) == last
        ):
            return other
    return None


def _block_id(call: Entry, ends: list[int], position: int) -> int:
    run = bisect.bisect_right(ends, position)
    first, count = call.hash_runs[run]
    return first + position - (ends[run] - count)
