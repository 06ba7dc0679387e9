"""Copies of stalled agents' contexts, made when the gate allows (``offloading.py``)."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.rivals.tokencake_repo.gate import (
    BACKOFF_STEPS,
    BLOCK_TOKENS,
    RECENT_STEPS,
    SUBMISSION_S_PER_BLOCK,
    Pressure,
    Verdict,
    churn_penalty,
    evaluate,
    is_worth_its_way,
    release_s,
)
from benchmarks.rivals.tokencake_repo.graph import Metadata
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call
from tokencake_sglang.policy import Insure, Machine, View

DEFAULT_STALL_S = 1.0
HISTORY_LIMIT = 4096


class StallTimes:
    """``lifecycle.py``: half the caller's estimate and half what was seen, per type and tool."""

    def __init__(self) -> None:
        self._seen_s: OrderedDict[tuple[str, str], float] = OrderedDict()

    def predict_s(self, agent_type: str, call: Call) -> float:
        seen_s = self._seen_s.get((agent_type, call.tool))
        if call.predicted_s is None:
            return DEFAULT_STALL_S if seen_s is None else seen_s
        return call.predicted_s if seen_s is None else (call.predicted_s + seen_s) / 2

    def learn(self, agent_type: str, tool: str, took_s: float) -> None:
        """A moving average with a weight of one half."""
        earlier_s = self._seen_s.pop((agent_type, tool), None)
        if earlier_s is not None:
            took_s = (took_s + earlier_s) / 2
        self._seen_s[agent_type, tool] = took_s
        if len(self._seen_s) > HISTORY_LIMIT:
            self._seen_s.popitem(last=False)


@dataclass(slots=True)
class Stall:
    """An open tool call. ``copied_step`` is when its context's copy was ordered; it ``is_owed``
    until it was seen to be under way."""

    agent_type: str
    call: Call
    end_s: float
    copied_step: int | None = None
    copied_tokens: int = 0
    is_owed: bool = True
    rejected_at: tuple | None = None
    next_step: int = 0


class Preservation:
    """``evaluate_pending``, once a step."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.times = StallTimes()
        self.stalls: dict[AgentKey, Stall] = {}
        self.step = 0
        self.verdicts: dict[Verdict, int] = dict.fromkeys(Verdict, 0)
        self._recent: deque[int] = deque(maxlen=96)

    def call_started(self, agent: Agent, call: Call, now_s: float) -> None:
        end_s = now_s + self.times.predict_s(agent.agent_type, call)
        self.stalls[agent.key] = Stall(agent.agent_type, call, end_s)

    def call_finished(self, agent: Agent, call: Call, now_s: float) -> None:
        self.stalls.pop(agent.key, None)
        self.times.learn(agent.agent_type, call.tool, max(0.0, now_s - call.started_s))

    def forget(self, key: AgentKey) -> None:
        self.stalls.pop(key, None)

    def new_step(self) -> None:
        self.step += 1
        while self._recent and self.step - self._recent[0] > RECENT_STEPS:
            self._recent.popleft()

    @property
    def is_pending(self) -> bool:
        return any(stall.is_owed for stall in self.stalls.values())

    def decide(
        self,
        view: View,
        pressure: Pressure,
        declared: "dict[AgentKey, Metadata]",
        type_scores: "dict[str, float]",
    ) -> Iterator[Insure]:
        """``declared`` says what the agents' last requests declared."""
        for key, stall in self.stalls.items():
            if stall.copied_step is not None:
                if stall.is_owed:  # the engine puts copies off while memory is promised
                    stall.is_owed = view.cached(key).uncopied_tokens > 0
                    if stall.is_owed:
                        yield Insure(key, "again")
                continue
            room = self._host_room(view.now_s)
            situation = (pressure, room)
            if stall.rejected_at == situation and self.step < stall.next_step:
                continue
            score = type_scores.get(stall.agent_type, 0.0)
            verdict = self._verdict(view, key, stall, pressure, room, declared.get(key), score)
            self.verdicts[verdict] += 1
            if verdict is not Verdict.SELECTED:
                stall.rejected_at = situation
                stall.next_step = self.step + BACKOFF_STEPS
                continue
            stall.copied_step = self.step
            stall.copied_tokens = view.cached(key).tokens
            self._recent.append(self.step)
            yield Insure(key, verdict)

    def _verdict(
        self,
        view: View,
        key: AgentKey,
        stall: Stall,
        pressure: Pressure,
        room: int,
        declared: Metadata | None,
        type_score: float,
    ) -> Verdict:
        remaining_s = max(0.0, stall.end_s - view.now_s)
        cached = view.cached(key)
        tokens = cached.tokens
        upload_s = self.transfer_s(tokens)
        if view.now_s >= release_s(stall.end_s, upload_s):
            return Verdict.UNPROFITABLE
        new_tokens = cached.uncopied_tokens
        transfer_s = self.transfer_s(new_tokens) + upload_s
        blocks = tokens // BLOCK_TOKENS
        if blocks and not is_worth_its_way(remaining_s, transfer_s):
            blocks = 0  # no prefix of it: theirs would copy the part that is
        return evaluate(
            declared or Metadata(),
            pressure,
            blocks=blocks,
            host_has_room=new_tokens <= room,
            remaining_s=remaining_s,
            transfer_s=transfer_s,
            agent_score=type_score,
            churn=churn_penalty(None, len(self._recent)),
        ).verdict

    def transfer_s(self, tokens: int) -> float:
        """``estimate_transfer``, one way."""
        blocks = tokens / BLOCK_TOKENS
        return self.machine.transfer_s(tokens) + blocks * SUBMISSION_S_PER_BLOCK

    def _host_room(self, now_s: float) -> int:
        """Tokens not pinned: a copy is until shortly before its call is expected to end."""
        pinned = sum(
            stall.copied_tokens
            for stall in self.stalls.values()
            if stall.copied_step is not None
            and now_s < release_s(stall.end_s, self.transfer_s(stall.copied_tokens))
        )
        return self.machine.host_tokens - pinned
