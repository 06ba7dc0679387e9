"""Applies the temporal policy to the cache: insure, release, upload, hold."""

import math

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, AgentState, Call
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.residents import Gap, Residence, Resident
from tokencake_sglang.observability.decisions import Action, DecisionLog
from tokencake_sglang.temporal.duration import CallFeatures, DurationModel, Source
from tokencake_sglang.temporal.policy import Idle, TemporalPolicy

LONGEST_STEP_S = 5.0
"""A longer silence is not a step: no tick was sent because no call was open."""

STEP_GAP_DECAY = 0.9

REVISION_S = 1.0
REVISION_SHARE = 0.25
"""A running call's end is predicted anew after so much of the time that it has lasted, at least
after ``REVISION_S``: a hundred times in a call of an hour."""

GRID = 0.06
"""The width of the duration model's bins: within one, the caller's own number is as good."""


def _features(agent: Agent, call: Call) -> CallFeatures:
    return CallFeatures(
        tool=call.tool,
        agent_type=agent.agent_type,
        application=agent.key.application,
        given_s=call.predicted_s,
        argument_key=call.arguments_digest,
    )


class TemporalExecutor:
    """The temporal half of one rank's planner.

    Everything it does follows from the event log and the tree, both equal on all ranks.
    """

    def __init__(
        self,
        config: TokencakeConfig,
        cache: TokencakeCache,
        policy: TemporalPolicy,
        residents: dict[AgentKey, Resident],
        log: DecisionLog,
        hold_budget_tokens: int,
        host_budget_tokens: int,
    ) -> None:
        self.config = config
        self.cache = cache
        self.policy = policy
        self.residents = residents
        self.log = log
        self.hold_budget_tokens = hold_budget_tokens
        self.host_budget_tokens = host_budget_tokens
        self.durations = DurationModel(config.default_call_s)
        self._expected_end_s: dict[AgentKey, dict[str, float]] = {}  # by open call
        self.step_gap_s = 0.0
        """How long a scheduler step takes at most, lately: nothing starts or ends in between."""
        self._last_step_s = 0.0
        self._waiting: dict[AgentKey, Resident] = {}  # in a gap: their return is expected
        self._dead: dict[AgentKey, Resident] = {}  # finished, their KV not yet given up
        self._held: dict[AgentKey, Resident] = {}  # pinned until their request is admitted
        self._uninsured: dict[AgentKey, Resident] = {}  # to be copied to the host, if not copied
        self._revise_s: dict[AgentKey, float] = {}  # when to look at a running call again

    # -- what happens to agents ---------------------------------------------------------------

    def call_started(self, agent: Agent, call: Call) -> None:
        ends = self._expected_end_s.setdefault(agent.key, {})
        ends[call.call_id] = self._expected_end(agent, call, call.started_s)
        resident = self.residents.get(agent.key)
        if resident is None:
            return
        self._unhold(resident, call.started_s, "another_call_started")
        self._expect(resident)
        self._revise_s[agent.key] = call.started_s + REVISION_S
        self._uninsured[agent.key] = resident

    def call_finished(self, agent: Agent, call: Call, now_s: float) -> None:
        self._call_over(agent, call)
        self.durations.observe(_features(agent, call), now_s - call.started_s)
        resident = self.residents.get(agent.key)
        if resident is None:
            return
        if agent.calls:
            self._expect(resident)
        else:
            resident.return_s = now_s  # its request is on the way
            self._begin_gap(resident)

    def call_lapsed(self, agent: Agent, call: Call, now_s: float) -> None:
        """Nobody ever said that the call ended: expect nothing of the agent any more."""
        self._call_over(agent, call)
        resident = self.residents.get(agent.key)
        if resident is None:
            return
        if agent.calls:
            self._expect(resident)
        else:
            self._let_go(resident, now_s, "call_lapsed")
            self._end_gap(resident)

    def returned(self, agent: Agent, now_s: float) -> None:
        """The agent's next request arrived: the gap is over."""
        resident = self.residents.get(agent.key)
        if resident is None or len(agent.rids) > 1:
            return
        gap = resident.gap
        self._end_gap(resident)
        if gap is not None:
            gap.returned_s = now_s
            resident.gap = gap

    def drop_holds_of_queued(self, now_s: float) -> None:
        """While memory is short, a request that queues anyway must not hold what others need."""
        for resident in list(self._held.values()):
            if resident.agent.rids:
                self._unhold(resident, now_s, "queued")

    def admitted(self, agent: Agent, now_s: float, loaded_tokens: int) -> None:
        """The agent's request runs and holds its own locks. Records how its KV was found.

        Args:
            loaded_tokens: what SGLang had to load back for it at admission.
        """
        resident = self.residents.get(agent.key)
        if resident is None or agent.key in self._waiting:
            return
        if (gap := resident.gap) is not None:
            self._record_return(resident, gap, now_s, loaded_tokens)
            resident.gap = None
        self._let_go(resident, now_s, "admitted")

    def _record_return(
        self, resident: Resident, gap: Gap, now_s: float, loaded_tokens: int
    ) -> None:
        device, host = self.cache.tokens_by_tier(resident.leaf_id)
        if device + host == 0:
            reason = "lost"
        elif loaded_tokens or host >= self.cache.load_back_threshold:
            reason = "upload_late" if gap.upload_wanted else "not_uploaded"
        elif gap.uploaded_tokens and self.cache.is_uploading(resident.leaf_id):
            reason = "upload_late"
        else:
            reason = "uploaded_in_time" if gap.uploaded_tokens else "resident"
        self.log.record(
            now_s,
            resident.agent.key,
            Action.RETURN,
            reason,
            gap.uploaded_tokens,
            returned_s=gap.returned_s,
            predicted_return_s=gap.predicted_return_s,
            loaded_at_admission_tokens=loaded_tokens,
            released_tokens=gap.released_tokens,
        )

    def let_go(self, agent: Agent, now_s: float, reason: str) -> None:
        """The agent's request has ended, admitted or not: what we held for it is over.

        Not those of a gap that began meanwhile: a call may be announced while its turn still ends.
        """
        resident = self.residents.get(agent.key)
        if resident is not None and agent.key not in self._waiting:
            self._let_go(resident, now_s, reason)

    def finished(self, agent: Agent, now_s: float) -> None:
        """The agent will not come back: forget its gap, and give its KV up first of all."""
        self._expected_end_s.pop(agent.key, None)
        resident = self.residents.get(agent.key)
        if resident is None:
            return
        self._end_gap(resident)
        self._let_go(resident, now_s, "agent_finished")
        resident.return_s = math.inf
        self._dead[agent.key] = resident

    def forget(self, key: AgentKey) -> None:
        self._dead.pop(key, None)
        self._revise_s.pop(key, None)
        self._waiting.pop(key, None)
        self._uninsured.pop(key, None)

    def turn_ended(self, resident: Resident) -> None:
        """A new turn's KV is in the tree."""
        self._dead.pop(resident.agent.key, None)
        if resident.agent.finished:  # by a signal that overtook its last turn
            resident.return_s = math.inf
            self._dead[resident.agent.key] = resident
        elif resident.agent.calls:  # announced while the turn was still being streamed
            self._expect(resident)
            self._uninsured[resident.agent.key] = resident

    def clear(self) -> None:
        """The tree was reset: nothing is anywhere any more."""
        self._waiting.clear()
        self._dead.clear()
        self._held.clear()
        self._uninsured.clear()
        self._revise_s.clear()

    # -- each step ----------------------------------------------------------------------------

    def step(
        self, now_s: float, *, shortage_tokens: int, queue_waits: bool, keep_free_tokens: int
    ) -> None:
        """Uploads what is due and releases what is short; called once per scheduler step.

        Args:
            shortage_tokens: slots that the next admissions need beyond what is free.
            queue_waits: whether the last admission left requests waiting.
            keep_free_tokens: slots that an upload must leave free or evictable.
        """
        self._measure_step(now_s)
        if not self._waiting and not self._dead:
            return
        for resident in list(self._uninsured.values()):
            self._insure(resident, now_s, keep_free_tokens)
        for resident in list(self._waiting.values()):
            self._advance(resident, now_s)
        # While a queue waits, an upload would only take what it waits for, and the agent's own
        # request would queue behind it: SGLang then loads it at admission, layer by layer.
        if not queue_waits and self.cache.can_start_upload():
            self._start_due_upload(now_s, keep_free_tokens)
        if shortage_tokens > 0:
            self._release(now_s, shortage_tokens)

    def _measure_step(self, now_s: float) -> None:
        """Stamps are the only clock here: steps are measured by the ticks that reach them."""
        gap_s, self._last_step_s = now_s - self._last_step_s, now_s
        if 0.0 < gap_s < LONGEST_STEP_S:
            self.step_gap_s = max(gap_s, STEP_GAP_DECAY * self.step_gap_s)

    def drop_one_hold(self, now_s: float, reason: str) -> bool:
        """Unpins the held agent that is expected last; False when nothing is held."""
        if not self._held:
            return False
        # Agents whose request is already here come last: they are nearest to using it.
        victim = max(
            self._held.values(),
            key=lambda r: (
                r.agent.state is not AgentState.ACTIVE,
                r.return_s or 0.0,
                r.agent.seen_order,
            ),
        )
        self._unhold(victim, now_s, reason)
        return True

    def _insure(self, resident: Resident, now_s: float, keep_free_tokens: int) -> None:
        """A copy locks the path until it is done: what others are sure to take must be left."""
        leaf_id = resident.leaf_id
        if self.cache.uncopied_tokens(leaf_id) and not self.cache.leaves_room(
            leaf_id, keep_free_tokens
        ):
            return  # the next step may have the room
        del self._uninsured[resident.agent.key]
        queued = self.cache.insure(leaf_id)
        if queued is None:
            self.log.record(now_s, resident.agent.key, Action.INSURE, "host_full")
        elif queued:
            self.log.record(now_s, resident.agent.key, Action.INSURE, "call_started", queued)

    def _expect(self, resident: Resident) -> None:
        """The agent returns when the last of its open calls ends."""
        key = resident.agent.key
        resident.return_s = max(self._expected_end_s[key].values())
        self._begin_gap(resident).predicted_return_s = resident.return_s

    def _call_over(self, agent: Agent, call: Call) -> None:
        ends = self._expected_end_s.get(agent.key, {})
        ends.pop(call.call_id, None)
        if not ends:
            self._expected_end_s.pop(agent.key, None)

    def _advance(self, resident: Resident, now_s: float) -> None:
        """Follows an upload to its end, and a return that does not come."""
        assert resident.return_s is not None
        if resident.residence is Residence.UPLOADING:
            self._finish_piece(resident, now_s)
        elif now_s >= resident.return_s + self.config.hold_timeout_s:
            self._unhold(resident, now_s, "overdue")
            if resident.agent.calls:
                self._revise(resident, now_s)
            else:
                self._end_gap(resident)
        elif now_s >= self._revise_s.get(resident.agent.key, math.inf) and resident.agent.calls:
            self._revise(resident, now_s)

    def _revise(self, resident: Resident, now_s: float) -> None:
        """What is expected of calls that still run: the longer they last, the more is to come."""
        agent = resident.agent
        ends = self._expected_end_s[agent.key]
        longest_s = 0.0
        for call in agent.calls.values():
            ends[call.call_id] = self._expected_end(agent, call, now_s)
            longest_s = max(longest_s, now_s - call.started_s)
        self._revise_s[agent.key] = now_s + max(REVISION_S, REVISION_SHARE * longest_s)
        self._expect(resident)

    def _expected_end(self, agent: Agent, call: Call, now_s: float) -> float:
        """The median, given that the call has not ended by ``now_s``.

        The distribution is made anew each time: kept, it would be the largest thing an agent has.
        """
        elapsed_s = now_s - call.started_s
        features, given_s = _features(agent, call), call.predicted_s
        expected = self.durations.expect(features)
        median_s = expected.quantile(0.5)
        if given_s is not None and self.durations.source(features) is Source.GIVEN:
            if abs(median_s - given_s) < GRID * given_s:
                median_s = given_s  # finer than the distribution's grid
            if elapsed_s < median_s:
                return call.started_s + median_s  # the caller's word holds until its time is up
        if elapsed_s > 0.0:
            median_s = expected.quantile(0.5, elapsed_s)
        return call.started_s + median_s

    def _finish_piece(self, resident: Resident, now_s: float) -> None:
        if self.cache.is_uploading(resident.leaf_id):
            return
        resident.residence = Residence.HOST  # unless all of it is there now
        loaded = self.cache.deepest_on_device(resident.leaf_id)
        if loaded is None or not self.cache.pin(resident.hold_holder, loaded):
            return
        self._held[resident.agent.key] = resident
        _, host = self.cache.tokens_by_tier(resident.leaf_id)
        if host < self.cache.load_back_threshold:
            resident.residence = Residence.HELD
            tokens = resident.gap.uploaded_tokens if resident.gap is not None else 0
            self.log.record(now_s, resident.agent.key, Action.HOLD, "uploaded", tokens)

    def _start_due_upload(self, now_s: float, keep_free_tokens: int) -> None:
        """Starts one piece for the agent that is expected first among those whose time it is."""
        due: list[tuple[float, int, Resident]] = []
        for resident in self._waiting.values():
            return_s = resident.return_s
            assert return_s is not None
            if resident.residence in (Residence.HELD, Residence.UPLOADING):
                continue
            # The tree is walked only when even the whole path would have to start by now.
            start_by_s = now_s + self.step_gap_s
            if start_by_s < self.policy.upload_start_s(return_s, resident.tokens):
                continue
            _, host = self.cache.tokens_by_tier(resident.leaf_id)
            if host < self.cache.load_back_threshold:
                continue
            if start_by_s >= self.policy.upload_start_s(return_s, host):
                due.append((return_s, resident.agent.seen_order, resident))
        for _, _, resident in sorted(due, key=lambda entry: entry[:2]):
            if self._upload_piece(resident, now_s, keep_free_tokens):
                return

    def _upload_piece(self, resident: Resident, now_s: float, keep_free_tokens: int) -> bool:
        key = resident.agent.key
        gap = self._begin_gap(resident)
        refusal = None
        tokens = 0
        if resident.agent.calls and not self._fits_hold_budget(resident):
            refusal = "hold_budget_spent"
        else:
            tokens = self.cache.upload(
                resident.leaf_id, self.config.upload_piece_tokens, keep_free_tokens
            )
            if tokens == 0:
                refusal = "no_room"
        if refusal is not None:
            if not gap.upload_wanted:  # once a gap, not once a step
                self.log.record(now_s, key, Action.UPLOAD, refusal)
            gap.upload_wanted = True
            return False
        gap.upload_wanted = True
        gap.uploaded_tokens += tokens
        resident.residence = Residence.UPLOADING
        reason = "return_predicted" if resident.agent.calls else "call_finished"
        self.log.record(
            now_s, key, Action.UPLOAD, reason, tokens, expected_return_s=resident.return_s
        )
        return True

    def _fits_hold_budget(self, resident: Resident) -> bool:
        holders = [other.hold_holder for other in self._waiting.values()]
        held = self.cache.pinned_tokens(holders, also=resident.leaf_id)
        return held <= self.hold_budget_tokens

    def _release(self, now_s: float, shortage_tokens: int) -> None:
        candidates: dict[AgentKey, Resident] = {**self._dead, **self._waiting}
        idle: list[Idle] = []
        for key, resident in candidates.items():
            if resident.residence in (Residence.UPLOADING, Residence.HELD):
                continue
            if self.cache.is_pinned(resident.pin_holder) or resident.return_s is None:
                continue
            if tokens := self.cache.releasable_tokens(resident.leaf_id):
                idle.append(Idle(key, resident.return_s, tokens, resident.agent.seen_order))
            elif key in self._dead and self.cache.tokens_by_tier(resident.leaf_id)[0] == 0:
                del self._dead[key]  # SGLang's own eviction was faster
        for decision in self.policy.releases(now_s, shortage_tokens, idle):
            resident = candidates[decision.key]
            freed = self.cache.release(resident.leaf_id)
            shortage_tokens -= freed
            if resident.gap is not None:
                resident.gap.released_tokens += freed
            resident.residence = Residence.HOST
            if decision.key in self._waiting:
                self._keep_on_host(resident)
            self.log.record(
                now_s,
                decision.key,
                Action.RELEASE,
                decision.reason,
                freed,
                expected_return_s=None if math.isinf(resident.return_s or 0) else resident.return_s,
            )
            if decision.key in self._dead:
                del self._dead[decision.key]
            if shortage_tokens <= 0:
                break

    def _keep_on_host(self, resident: Resident) -> None:
        """The host copy is the only one now; SGLang's LRU would drop the longest stall first."""
        if self.cache.host_pinned_tokens(also=resident.leaf_id) <= self.host_budget_tokens:
            self.cache.host_pin(resident.hold_holder, resident.leaf_id)

    def _unhold(self, resident: Resident, now_s: float, reason: str) -> None:
        if self._held.pop(resident.agent.key, None) is not None:
            self.cache.unpin(resident.hold_holder)
            if resident.residence is Residence.HELD:
                resident.residence = Residence.DEVICE  # anybody may evict it now
            self.log.record(now_s, resident.agent.key, Action.UNHOLD, reason)

    def _let_go(self, resident: Resident, now_s: float, reason: str) -> None:
        self._unhold(resident, now_s, reason)
        self.cache.host_unpin(resident.hold_holder)

    def _begin_gap(self, resident: Resident) -> Gap:
        self._waiting[resident.agent.key] = resident
        if resident.gap is None or resident.gap.returned_s is not None:
            resident.gap = Gap()
        return resident.gap

    def _end_gap(self, resident: Resident) -> None:
        self._waiting.pop(resident.agent.key, None)
        self._revise_s.pop(resident.agent.key, None)
        self._uninsured.pop(resident.agent.key, None)
        resident.residence = Residence.DEVICE
        resident.return_s = None
        resident.gap = None

    # -- for status ---------------------------------------------------------------------------

    def snapshot(self) -> dict[str, int]:
        return {
            "in_gap": len(self._waiting),
            "finished_resident": len(self._dead),
            "uploading": sum(
                resident.residence is Residence.UPLOADING for resident in self._waiting.values()
            ),
            "held": len(self._held),
            "hold_budget_tokens": self.hold_budget_tokens,
            "host_held_tokens": self.cache.host_pinned_tokens(),
            "host_budget_tokens": self.host_budget_tokens,
        }
