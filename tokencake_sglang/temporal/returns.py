"""When agents in tool calls will be back: what is expected of each open call, revised as it lasts."""

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call, Change, Transition
from tokencake_sglang.temporal.duration import CallFeatures, DurationModel, Source
from tokencake_sglang.temporal.durations.distribution import Distribution
from tokencake_sglang.temporal.upload import CRITICAL_QUANTILE

REVISION_S = 1.0
REVISION_SHARE = 0.25
"""A running call's end is predicted anew after so much of the time that it has lasted, at least
after ``REVISION_S``: a hundred times in a call of an hour."""

GRID = 0.06
"""The width of the duration model's bins: within one, the caller's own number is as good."""


def features_of(agent: Agent, call: Call) -> CallFeatures:
    """What the duration model is told of a call."""
    return CallFeatures(
        tool=call.tool,
        agent_type=agent.agent_type,
        application=agent.key.application,
        given_s=call.predicted_s,
        argument_key=call.arguments_digest,
        argument_size=call.arguments_size,
        stages=call.stages,
    )


def learn(durations: DurationModel, transition: Transition, now_s: float) -> None:
    """Tells ``durations`` how long a call or a stage took, where the transition ends one."""
    agent, call = transition.agent, transition.call
    if call is None:
        return
    if transition.ended_stage is not None:
        durations.observe_stage(features_of(agent, call), *transition.ended_stage)
    if transition.change is Change.CALL_FINISHED:
        durations.observe(features_of(agent, call), now_s - call.started_s)


class Return(msgspec.Struct, frozen=True, gc=False):
    """When an agent is expected back, in seconds on the main process's clock.

    ``promised`` says that the number is the caller's own and its time is not up yet. Any other is
    a median given how long the call had lasted at ``seen_s``: as time passes without an end, the
    end recedes. ``call`` is the one that ends then; None where none is open any more.
    ``early_s`` is the earlier time at which a critical agent's KV should be back on the device;
    None where that is ``at_s``, as it is for promises and for all other agents.
    """

    at_s: float
    seen_s: float
    promised: bool
    call: Call | None = None
    early_s: float | None = None

    @property
    def upload_by_s(self) -> float:
        """When the agent's KV should be back on the device."""
        return self.at_s if self.early_s is None else self.early_s

    def seconds_left(self, now_s: float) -> float:
        """Expected seconds until the agent is back.

        A promise comes nearer; once it is broken, the time that has passed since predicts the
        time that is left (Lindy's law; exact for a power law of exponent 2). Of a median, what
        was left when it was taken.
        """
        return abs(self.at_s - now_s) if self.promised else self.at_s - self.seen_s


class Returns:
    """What is expected of every open call. Changes with events only, and when told to revise.

    Args:
        is_critical: whether an agent's KV should be back early rather than late.
    """

    def __init__(self, durations: DurationModel, is_critical: Callable[[Agent], bool]) -> None:
        self.durations = durations
        self.is_critical = is_critical
        # Most agents have one open call, or none.
        self._ends: dict[AgentKey, tuple[Return, ...]] = {}

    def expect(self, agent: Agent, call: Call, now_s: float) -> None:
        """The call has begun, or something was said about how far it is."""
        others = self._ends_but(call, agent.key)
        self._ends[agent.key] = (*others, self._expected_end(agent, call, now_s))

    def call_over(self, agent: Agent, call: Call) -> None:
        others = self._ends_but(call, agent.key)
        if others:
            self._ends[agent.key] = others
        else:
            self.forget(agent.key)

    def _ends_but(self, call: Call, key: AgentKey) -> tuple[Return, ...]:
        return tuple(end for end in self._ends.get(key, ()) if end.call is not call)

    def forget(self, key: AgentKey) -> None:
        self._ends.pop(key, None)

    def revise(self, agent: Agent, now_s: float) -> None:
        """Looks again at the agent's calls that still run: the longer they last, the more is to
        come."""
        self._ends[agent.key] = tuple(
            [
                end
                if end.call is None or (end.promised and now_s < end.at_s)
                else self._median_end(agent, end.call, now_s)
                for end in self._ends[agent.key]
            ]
        )

    def of(self, key: AgentKey) -> Return | None:
        """The agent returns when the last of its open calls ends; None when none is open.

        Its KV should be back by the last of the times that the calls ask for, one by one.
        """
        ends = self._ends.get(key)
        if ends is None:
            return None
        if len(ends) == 1:
            return ends[0]
        last = max(ends, key=lambda end: end.at_s)
        upload_by_s = max(end.upload_by_s for end in ends)
        return last if upload_by_s == last.upload_by_s else replace(last, early_s=upload_by_s)

    def look_again_s(self, key: AgentKey) -> float:
        """When ``revise`` is next worth its while: of calls whose ends are promised, at the last
        one's, of others each time they have lasted a quarter longer."""
        ends = self._ends[key]
        looks_s = [
            end.seen_s + max(REVISION_S, REVISION_SHARE * (end.seen_s - end.call.started_s))
            for end in ends
            if end.call is not None and not end.promised
        ]
        return max(looks_s) if looks_s else max(end.at_s for end in ends)

    def _expected_end(self, agent: Agent, call: Call, now_s: float) -> Return:
        promised_s = self._promised(agent, call)
        if promised_s is not None and now_s < call.started_s + promised_s:
            return Return(call.started_s + promised_s, now_s, promised=True, call=call)
        return self._median_end(agent, call, now_s)

    def _median_end(self, agent: Agent, call: Call, now_s: float) -> Return:
        """The median, given that the call has not ended by ``now_s``; and of a critical agent the
        quantile that its upload aims at.

        The distribution is made anew each time: kept, it would be the largest thing an agent has.
        """
        elapsed_s = max(now_s - call.started_s, 0.0)
        length = self._expected_length(agent, call)
        early_s = None
        if self.is_critical(agent):
            early_s = call.started_s + length.quantile(CRITICAL_QUANTILE, elapsed_s)
        at_s = call.started_s + length.quantile(0.5, elapsed_s)
        return Return(at_s, now_s, promised=False, call=call, early_s=early_s)

    def _promised(self, agent: Agent, call: Call) -> float | None:
        """The whole length by the caller's word, corrected by how its words turned out before;
        None where nothing was said or history knows better."""
        progress, given_s = call.progress, call.predicted_s
        features = features_of(agent, call)
        if progress is not None and progress.remaining_s is not None:
            given_s = progress.at_s - call.started_s + progress.remaining_s
            features = replace(features, given_s=given_s)
        elif progress is not None or call.stages_finished:
            return None  # seen since, which counts for more
        if given_s is None or self.durations.source(features) is not Source.GIVEN:
            return None
        median_s = self.durations.expect(features).quantile(0.5)
        # Finer than the distribution's grid.
        return given_s if abs(median_s - given_s) < GRID * given_s else median_s

    def _expected_length(self, agent: Agent, call: Call) -> Distribution:
        features = features_of(agent, call)
        if call.stages_finished:
            past_s = call.stage_started_s - call.started_s
            expected = self.durations.expect_after(features, call.stages_finished, past_s)
        else:
            expected = self.durations.expect(features)
        progress = call.progress
        if progress is None:
            return expected
        at_s = progress.at_s - call.started_s
        if progress.fraction is not None:
            return expected.with_progress(at_s, fraction=progress.fraction)
        assert progress.remaining_s is not None
        return expected.with_progress(at_s, total_s=at_s + progress.remaining_s)
