"""Turns what happens on a live server into the lines of a replay file.

Neither text nor token ids are kept: prompts and outputs become chained hashes of blocks (blocks.py).
What a server sees has no dependencies in it, so they are inferred:

- An agent's next request waits for its previous one, and for the calls signalled in between.
- A request whose prompt begins with another request's prompt and output, of the same application,
  waits for that one: it continues it. An output that completes no block cannot be recognised.
- Either also waits for the application's requests that began after the one so waited for was
  settled, are settled themselves, and that nothing waits for yet: a join of what was fanned out.
- An agent's first request that continues nothing, and that comes while another agent of the
  application is in a call, was started by that call (``spawned_by``); what it led to before the
  call returned is part of the call (``until``).
- Otherwise it waits for the application's settled requests that nothing waits for, or, where there
  are none, for the one settled last. Where nothing has ended yet it has an ``arrival_s``.

What is left of the pause is ``delay_s``. Several calls between two requests become one, with the
tool and the prediction of the one that returned last. Untagged requests have an ``arrival_s``.

A line is written when nothing can be added to it: its agent went on or finished, or another request
waits for it. It comes after the lines of all that it waits for, so that a file cut off anywhere is
a valid workload.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from tokencake_sglang.agents.events import (
    AgentFinish,
    AnyEvent,
    ApplicationFinish,
    CallFinish,
    CallStart,
)
from tokencake_sglang.agents.identity import AgentKey, AgentTag
from tokencake_sglang.replay.blocks import Chain, Hasher
from tokencake_sglang.replay.tokens import Span, cut
from tokencake_sglang.replay.workload import Request, ToolCall

REMEMBERED_TURNS = 512
"""Ended requests of an application among which a new one's predecessors are looked for."""
REMEMBERED_NAMES = 65_536
"""Closed applications whose names are kept, so that a second run of one gets another name."""
JOINED_TURNS = 64
"""Most requests that one waits for."""


@dataclass(slots=True, eq=False)
class _Call:
    tool: str
    started_s: float
    predicted_s: float | None
    finished_s: float | None = None


@dataclass(slots=True, eq=False)
class _Turn:
    """One request, from its beginning until its line is written."""

    request_id: str
    tag: AgentTag | None
    began_s: float
    chain: Chain | None
    prompt_tokens: int
    run: "_Run | None" = None
    wait_for: list["_Turn"] = field(default_factory=list)
    spawned_by: "_Turn | None" = None
    ended_s: float | None = None
    uncounted_tokens: int = 0
    """Output of which only the length is known."""
    calls: list[_Call] = field(default_factory=list)
    until: list["_Turn"] = field(default_factory=list)
    spawned: set[str] = field(default_factory=set)
    """Agents that began while its call was open."""
    delay_s: float = 0.0
    waited_for: int = 0
    final: bool = False
    written: bool = False
    followers: list["_Turn"] = field(default_factory=list)
    """Ended requests whose lines wait for this one's."""

    @property
    def in_call(self) -> bool:
        return any(call.finished_s is None for call in self.calls)

    @property
    def settled_s(self) -> float:
        """When it had ended and its calls had returned; only once that is so."""
        assert self.ended_s is not None
        return max([self.ended_s, *(call.finished_s or 0.0 for call in self.calls)])

    @property
    def blocks(self) -> int:
        return self.chain.blocks if self.chain is not None else 0

    def ended_by(self, now_s: float) -> bool:
        return self.ended_s is not None and self.ended_s <= now_s

    def settled_by(self, now_s: float) -> bool:
        return self.ended_by(now_s) and not self.in_call and self.settled_s <= now_s

    def return_by(self, now_s: float) -> None:
        """Its agent went on: whatever a late signal says, the calls had returned."""
        for call in self.calls:
            call.finished_s = now_s if call.finished_s is None else min(call.finished_s, now_s)
            if self.run is not None:
                self.run.calls.pop(call, None)


@dataclass(slots=True, eq=False)
class _Agent:
    name: str
    running: list[_Turn] = field(default_factory=list)
    last: _Turn | None = None
    """Of the ended requests the one that ended last."""
    calls: dict[str, _Call] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Run:
    """One application from its first request until it has finished or is given up."""

    application: str
    name: str
    """The application's, or another one from its second run on."""
    last_event_s: float
    agents: dict[str, _Agent] = field(default_factory=dict)
    ended: OrderedDict[str, _Turn] = field(default_factory=OrderedDict)
    by_end: dict[bytes, _Turn] = field(default_factory=dict)
    """By the hash of the last full block, where that holds a part of the output."""
    calls: dict[_Call, _Turn] = field(default_factory=dict)
    """Open calls, in the order in which they were started."""
    closed: bool = False

    def remember(self, turn: _Turn) -> None:
        self.ended[turn.request_id] = turn
        chain = turn.chain
        if chain is not None and chain.blocks * chain.block_size > turn.prompt_tokens:
            self.by_end[chain.block(chain.blocks - 1)] = turn
        while len(self.ended) > REMEMBERED_TURNS:
            _, oldest = self.ended.popitem(last=False)
            self.by_end = {end: turn for end, turn in self.by_end.items() if turn is not oldest}

    def continued_by(self, turn: _Turn) -> _Turn | None:
        """The request of which this one repeats prompt and output, the longest of them."""
        chain = turn.chain
        if chain is None or not self.by_end:
            return None
        for index in reversed(range(chain.blocks)):
            other = self.by_end.get(chain.block(index))
            if other is not None and other.ended_by(turn.began_s):
                return other
        return None

    def opener(self, turn: _Turn) -> _Turn | None:
        """The request of another agent whose call was started last and is still open."""
        assert turn.tag is not None
        for other in reversed(self.calls.values()):
            assert other.tag is not None
            if other.ended_by(turn.began_s) and other.tag.key != turn.tag.key:
                return other
        return None

    def loose(self, now_s: float, since_s: float = 0.0) -> list[_Turn]:
        """Settled requests that nothing waits for, of those that began at ``since_s`` or later."""
        turns = (t for t in self.ended.values() if not t.waited_for and t.began_s >= since_s)
        return [turn for turn in turns if turn.settled_by(now_s)][-JOINED_TURNS:]

    def settled_last(self, now_s: float) -> list[_Turn]:
        settled = [turn for turn in self.ended.values() if turn.settled_by(now_s)]
        return [max(settled, key=lambda turn: turn.settled_s)] if settled else []


class Recorder:
    """Takes what happens, in order of time, and hands over lines. Reads no clock; not locked.

    Args:
        write: receives whole lines, one or more at a time.
        block_size: tokens in which sharing is recorded.
        key: of the hashes, at most 64 bytes; used nowhere else.
        agent_timeout_s: an application of which nothing was heard for so long has finished.
        held_blocks: above it the oldest lines are written although a call may be cut short.
        held_agents: above it the application longest unheard of has finished.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        block_size: int,
        key: bytes,
        agent_timeout_s: float = 3600.0,
        held_blocks: int = 4_000_000,
        held_agents: int = 65_536,
    ) -> None:
        self.counts: Counter[str] = Counter()
        """``recorded``; and why others were left out or are incomplete, see docs/replay.md."""
        self._write = write
        self._hasher = Hasher(block_size, key)
        self._agent_timeout_s = agent_timeout_s
        self._held_blocks_max, self._held_agents_max = held_blocks, held_agents
        self._start_s: float | None = None
        self._now_s = 0.0
        self._number = 0
        self._running: dict[str, _Turn] = {}
        self._runs: OrderedDict[str, _Run] = OrderedDict()  # longest unheard of first
        self._names: OrderedDict[str, int] = OrderedDict()
        self._held: OrderedDict[str, _Turn] = OrderedDict()  # ended first, first
        self._held_blocks = 0
        self._agents = 0
        self._lines: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode

    # -- what happens -------------------------------------------------------------------------

    def begin(
        self,
        rid: str,
        tag: AgentTag | None,
        prompt: Iterable[int],
        at_s: float,
        namespace: str = "",
    ) -> None:
        """A request was sent. Requests of different namespaces share nothing."""
        self._advance(at_s)
        if self._start_s is None:
            self._start_s = at_s
        chain = self._hasher.chain(namespace)
        chain.extend(prompt)
        turn = _Turn(f"r{self._number}", tag, at_s, chain, chain.length)
        self._number += 1
        if rid in self._running:
            self._fail(self._running[rid], "replaced")
        self._running[rid] = turn
        if tag is not None:
            self._place(turn, tag.key)
        self._flush()

    def end(self, rid: str, output: Sequence[int] | int, at_s: float) -> None:
        """A request was answered; ``output``: its tokens, or how many there are."""
        self._advance(at_s)
        turn = self._running.get(rid)
        if turn is None:
            return
        if not output or not turn.prompt_tokens:
            self.fail(rid, at_s, "empty")
            return
        del self._running[rid]
        assert turn.chain is not None
        if isinstance(output, int):
            turn.uncounted_tokens = output
            self.counts["output_unknown"] += 1
        else:
            turn.chain.extend(output)
        turn.ended_s = at_s
        self._held[turn.request_id] = turn
        self._held_blocks += turn.blocks
        self._end(turn)
        while self._held_blocks > self._held_blocks_max:
            self._force(next(iter(self._held.values())), "cut_short")
        self._flush()

    def fail(self, rid: str, at_s: float, why: str = "aborted") -> None:
        """A request was aborted or refused: it is left out."""
        self._advance(at_s)
        turn = self._running.pop(rid, None)
        if turn is not None:
            self._fail(turn, why)
        self._flush()

    def signal(self, event: AnyEvent, at_s: float) -> None:
        """An accepted signal; other events say nothing here."""
        self._advance(at_s)
        match event:
            case CallStart():
                self._call_start(event, at_s)
            case CallFinish():
                self._call_finish(event, at_s)
            case AgentFinish():
                if known := self._known(event.key):
                    self._finish_agent(*known)
            case ApplicationFinish():
                if event.application in self._runs:
                    self._close(event.application)
        self._flush()

    def close(self, at_s: float) -> None:
        """The end of the recording: writes all that has ended, leaves out what has not."""
        self._now_s = max(self._now_s, at_s)
        for turn in list(self._running.values()):
            self._fail(turn, "unfinished")
        self._running.clear()
        for application in list(self._runs):
            self._close(application)
        for turn in list(self._held.values()):
            self._force(turn)
        self._flush()

    # -- requests -----------------------------------------------------------------------------

    def _place(self, turn: _Turn, key: AgentKey) -> None:
        """Decides what a tagged request waited for."""
        run = self._run_of(key.application)
        agent = run.agents.get(key.agent)
        if agent is None:
            agent = run.agents[key.agent] = _Agent(key.agent)
            self._agents += 1
        turn.run = run
        previous = agent.last
        if previous is not None:
            previous.return_by(turn.began_s)
            agent.calls.clear()
        agent.running.append(turn)
        waits = [t for t in (previous, run.continued_by(turn)) if t and t.ended_by(turn.began_s)]
        settled = [t for t in waits if t.settled_by(turn.began_s)]
        turn.spawned_by = next((t for t in waits if t not in settled), None)
        if settled:
            since_s = max(t.settled_s for t in settled)
            settled += run.loose(turn.began_s, since_s)
        elif turn.spawned_by is None:
            settled = self._predecessors(turn, run)
        turn.wait_for = list(dict.fromkeys(settled))
        if turn.spawned_by is not None:
            turn.spawned_by.spawned.add(key.agent)
        ready = [t.settled_s for t in turn.wait_for]
        if turn.spawned_by is not None and turn.spawned_by.ended_s is not None:
            ready.append(turn.spawned_by.ended_s)
        turn.delay_s = max(turn.began_s - max(ready), 0.0) if ready else 0.0
        for other in turn.wait_for:
            other.waited_for += 1
            self._finalise(other)

    def _predecessors(self, turn: _Turn, run: _Run) -> list[_Turn]:
        """What a request waited for that neither goes on nor continues; may set ``spawned_by``."""
        opener = run.opener(turn)
        loose = run.loose(turn.began_s)
        if opener is not None:
            opened_s = max(call.started_s for call in opener.calls if call.finished_s is None)
            inside: list[_Turn] = []
            outside: list[_Turn] = []
            for other in loose:
                ours = other.tag is not None and other.tag.key.agent in opener.spawned
                (inside if ours else outside).append(other)
            if not any(other.settled_s > opened_s for other in outside):
                turn.spawned_by = opener
                return inside
        return loose or run.settled_last(turn.began_s)

    def _end(self, turn: _Turn) -> None:
        run = turn.run
        if run is None or turn.tag is None or run.closed:
            self._finalise(turn)
            return
        run.remember(turn)
        self._heard_of(run)
        agent = run.agents.get(turn.tag.key.agent)
        if agent is None:  # it finished meanwhile
            self._finalise(turn)
            return
        if turn not in agent.running:  # it finished, and lives on
            self._finalise(turn)
            return
        agent.running.remove(turn)
        replaced, agent.last = agent.last, turn
        if replaced is not None and not replaced.final:
            replaced.return_by(self._now_s)
            self._finalise(replaced)

    def _fail(self, turn: _Turn, why: str) -> None:
        self.counts[why] += 1
        turn.return_by(self._now_s)
        for other in turn.wait_for:
            other.waited_for -= 1
        if turn.run is not None and turn.tag is not None:
            agent = turn.run.agents.get(turn.tag.key.agent)
            if agent is not None and turn in agent.running:
                agent.running.remove(turn)
        turn.wait_for, turn.spawned_by, turn.chain = [], None, None

    # -- signals ------------------------------------------------------------------------------

    def _call_start(self, event: CallStart, at_s: float) -> None:
        known = self._known(event.key)
        if known is None:
            return
        run, agent = known
        turn = agent.running[-1] if agent.running else agent.last
        if turn is None or turn.final:
            # Others went on already; to the agent's next request it is a pause.
            self.counts["late_calls"] += 1
            return
        call = _Call(event.tool, at_s, event.predicted_s)
        turn.calls.append(call)
        agent.calls[event.call_id] = call
        run.calls[call] = turn

    def _call_finish(self, event: CallFinish, at_s: float) -> None:
        known = self._known(event.key)
        if known is None:
            return
        run, agent = known
        call = agent.calls.pop(event.call_id, None)
        if call is not None:
            run.calls.pop(call, None)
            call.finished_s = at_s if call.finished_s is None else call.finished_s

    # -- applications -------------------------------------------------------------------------

    def _run_of(self, application: str) -> _Run:
        run = self._runs.get(application)
        if run is None:
            count = self._names.pop(application, 0) + 1
            self._names[application] = count
            while len(self._names) > REMEMBERED_NAMES:
                self._names.popitem(last=False)
            name = application if count == 1 else f"{application}~{count}"
            run = self._runs[application] = _Run(application, name, self._now_s)
        self._heard_of(run)
        return run

    def _known(self, key: AgentKey) -> tuple[_Run, _Agent] | None:
        run = self._runs.get(key.application)
        agent = run.agents.get(key.agent) if run is not None else None
        if run is None or agent is None:
            return None
        self._heard_of(run)
        return run, agent

    def _advance(self, at_s: float) -> None:
        """Gives up applications that are silent for too long, or more than can be kept."""
        self._now_s = max(self._now_s, at_s)
        while self._runs:
            run = next(iter(self._runs.values()))
            full = self._agents > self._held_agents_max
            if not full and run.last_event_s + self._agent_timeout_s >= self._now_s:
                return
            if not full and any(agent.running for agent in run.agents.values()):
                self._heard_of(run)  # not silent: something takes long
                return
            self._close(run.application)

    def _heard_of(self, run: _Run) -> None:
        if not run.closed:
            run.last_event_s = self._now_s
            self._runs.move_to_end(run.application)

    def _close(self, application: str) -> None:
        run = self._runs.pop(application)
        run.closed = True
        for agent in list(run.agents.values()):
            self._finish_agent(run, agent)

    def _finish_agent(self, run: _Run, agent: _Agent) -> None:
        """A request that it still has running is written when that ends."""
        del run.agents[agent.name]
        self._agents -= 1
        if agent.last is not None:
            agent.last.return_by(self._now_s)
            self._finalise(agent.last)

    # -- lines --------------------------------------------------------------------------------

    def _finalise(self, turn: _Turn) -> None:
        """Nothing that happens from now on is added to the request."""
        if turn.final:
            return
        turn.final = True
        turn.return_by(self._now_s)
        if turn.calls and turn.spawned and turn.run is not None:
            returned_s = turn.settled_s
            latest = {t.tag.key.agent: t for t in turn.run.ended.values() if t.tag is not None}
            for name in turn.spawned:
                other = latest.get(name)
                # Its line comes after this one's, so it must not have to wait for yet another's.
                if other is not None and not other.written and other.settled_by(returned_s):
                    turn.until.append(other)
                    other.waited_for += 1
        until = turn.until
        self._write_ready(turn)
        for other in until:
            self._finalise(other)

    def _write_ready(self, turn: _Turn) -> None:
        """Writes the request, and those that waited only for its line."""
        stack = [turn]
        while stack:
            turn = stack.pop()
            if turn.written or not turn.final or turn.ended_s is None:
                continue
            before = [*turn.wait_for, *([turn.spawned_by] if turn.spawned_by is not None else ())]
            missing = [other for other in before if not other.written]
            if missing:
                for other in missing:
                    other.followers.append(turn)
                continue
            self._write_line(turn)
            stack.extend(turn.followers)
            turn.followers = []

    def _force(self, turn: _Turn, why: str | None = None) -> None:
        if why is not None and turn.in_call:
            self.counts[why] += 1
        for other in (*turn.wait_for, turn.spawned_by):
            if other is not None and not other.written:
                self._force(other, why)
        self._finalise(turn)

    def _write_line(self, turn: _Turn) -> None:
        assert self._start_s is not None
        prompt, output = self._spans(turn)
        root = not turn.wait_for and turn.spawned_by is None
        request = Request(
            request_id=turn.request_id,
            application=turn.run.name if turn.run is not None else None,
            agent=turn.tag.agent if turn.tag is not None else None,
            agent_type=turn.tag.agent_type if turn.tag is not None else "default",
            critical=turn.tag.critical if turn.tag is not None else False,
            tenant=turn.tag.tenant if turn.tag is not None else None,
            arrival_s=_seconds(turn.began_s - self._start_s) if root else None,
            wait_for=tuple(other.request_id for other in turn.wait_for),
            spawned_by=turn.spawned_by.request_id if turn.spawned_by is not None else None,
            delay_s=_seconds(turn.delay_s),
            prompt=prompt,
            output=output,
            call=_tool_call(turn),
        )
        self._lines.append(self._encode(request) + b"\n")
        self.counts["recorded"] += 1
        turn.written = True
        if self._held.pop(turn.request_id, None) is not None:
            self._held_blocks -= turn.blocks
        # What others still need of it are its times; the rest would hold all that came before.
        turn.wait_for, turn.until, turn.spawned_by, turn.chain = [], [], None, None

    def _spans(self, turn: _Turn) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        assert turn.chain is not None
        spans = turn.chain.spans()
        if turn.uncounted_tokens:
            return spans, (Span(f"{turn.request_id}/output", 0, turn.uncounted_tokens),)
        return cut(spans, 0, turn.prompt_tokens), cut(spans, turn.prompt_tokens)

    def _flush(self) -> None:
        """One write for all lines of one occasion, so that none is there without the others."""
        if self._lines:
            lines, self._lines = b"".join(self._lines), []
            self._write(lines)


def _tool_call(turn: _Turn) -> ToolCall | None:
    if not turn.calls:
        return None
    assert turn.ended_s is not None
    last = max(turn.calls, key=lambda call: call.finished_s or 0.0)
    declared_s = last.predicted_s
    if declared_s is not None and len(turn.calls) > 1:
        declared_s += max(last.started_s - turn.ended_s, 0.0)
    begins_s = max([turn.ended_s, *(other.settled_s for other in turn.until)])
    return ToolCall(
        tool=last.tool,
        wait_s=_seconds(turn.settled_s - begins_s),
        declared_s=None if declared_s is None else _seconds(declared_s),
        until=tuple(other.request_id for other in turn.until),
    )


def _seconds(value: float) -> float:
    return round(max(value, 0.0), 6)
