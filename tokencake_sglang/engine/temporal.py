"""Applies the temporal policy to the cache: insure, upload, hold, and what eviction has taken."""

import heapq
from collections import Counter

from tokencake_sglang.agents.alarms import Alarms
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, AgentState, Call
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.residents import Gap, Residence, Resident
from tokencake_sglang.engine.storage import StorageFetches
from tokencake_sglang.observability.decisions import Action, DecisionLog
from tokencake_sglang.temporal.duration import DurationModel
from tokencake_sglang.temporal.returns import Return, Returns
from tokencake_sglang.temporal.upload import UploadTiming

LONGEST_STEP_S = 5.0
"""A longer silence is not a step: no tick was sent because no call was open."""

STEP_GAP_DECAY = 0.9

LOOK_INTERVAL_S = 0.05
"""In each such piece of time one agent is expected anew, the one whose time came first: a look is
the dearest thing that a step does without moving anything. Of a crowd the others wait."""

UPLOAD_RETRY_S = 0.1
"""After a refusal to all that were asked; sooner if another agent's upload is due."""

UPLOADS_TRIED = 4
"""How many agents are asked, in one step, whether there is room for them."""


class TemporalExecutor:
    """The temporal half of one rank's planner.

    Everything it does follows from the event log and the tree, both equal on all ranks. Memory is
    released late and lazily: SGLang's own eviction takes, at the moment of an allocation, what
    ``NextUseEviction`` ranks farthest from its use.
    """

    def __init__(
        self,
        config: TokencakeConfig,
        cache: TokencakeCache,
        timing: UploadTiming,
        residents: dict[AgentKey, Resident],
        log: DecisionLog,
        hold_budget_tokens: int,
        storage: StorageFetches,
    ) -> None:
        self.config = config
        self.cache = cache
        self.timing = timing
        self.residents = residents
        self.log = log
        self.hold_budget_tokens = hold_budget_tokens
        self.storage = storage
        self.returns = Returns(DurationModel(config.default_call_s))
        self._uploads = "uploads" not in config.without
        self.step_gap_s = 0.0
        """How long a scheduler step takes at most, lately: nothing starts or ends in between."""
        self._last_step_s = 0.0
        self._held: dict[AgentKey, Resident] = {}  # pinned until their request is admitted
        self._uninsured: dict[AgentKey, Resident] = {}  # to be copied to the host, if not copied
        self._looks: Alarms[AgentKey] = Alarms()  # of all in a gap: when to expect them anew
        self._starts: Alarms[AgentKey] = Alarms()  # when an upload must start
        self._due: dict[AgentKey, Resident] = {}  # whose upload must have started by now
        self._looked_in = 0  # the LOOK_INTERVAL_S in which an agent was last expected anew
        self._upload_again_s = 0.0
        self._uploading: Resident | None = None
        self._evicted: Counter[AgentKey] = Counter()  # tokens since the last step

    # -- what happens to agents ---------------------------------------------------------------

    def durations_known(self, durations: DurationModel) -> None:
        """What was learnt before the server was started again."""
        self.returns.durations = durations

    def call_started(self, agent: Agent, call: Call) -> None:
        self.returns.expect(agent, call, call.started_s)
        resident = self.residents.get(agent.key)
        if resident is None:
            return
        self._unhold(resident, call.started_s, "another_call_started")
        self._expect(resident)
        self._uninsured[agent.key] = resident

    def call_progressed(self, agent: Agent, call: Call, now_s: float) -> None:
        """The caller said how far its call is."""
        self.returns.expect(agent, call, now_s)
        resident = self.residents.get(agent.key)
        if resident is not None:
            self._expect(resident)

    def call_finished(self, agent: Agent, call: Call, now_s: float) -> None:
        self.returns.call_over(agent, call)
        resident = self.residents.get(agent.key)
        if resident is None:
            return
        if agent.calls:
            self._expect(resident)
            return
        self._await(resident, Return(now_s, now_s, promised=True))  # its request is on the way

    def call_lapsed(self, agent: Agent, call: Call, now_s: float) -> None:
        """Nobody ever said that the call ended: expect nothing of the agent any more."""
        self.returns.call_over(agent, call)
        resident = self.residents.get(agent.key)
        if resident is None:
            return
        if agent.calls:
            self._expect(resident)
        else:
            self._unhold(resident, now_s, "call_lapsed")
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

    def admitted(
        self, agent: Agent, now_s: float, loaded_tokens: int, storage_tokens: int = 0
    ) -> None:
        """The agent's request runs and holds its own locks. Records how its KV was found.

        Args:
            loaded_tokens: what SGLang had to load back for it at admission.
            storage_tokens: what SGLang read from storage while it was queued.
        """
        resident = self.residents.get(agent.key)
        if resident is None or resident.in_gap:
            return
        if (gap := resident.gap) is not None:
            self._record_return(resident, gap, now_s, loaded_tokens, storage_tokens)
            resident.gap = None
        self._unhold(resident, now_s, "admitted")

    def _record_return(
        self,
        resident: Resident,
        gap: Gap,
        now_s: float,
        loaded_tokens: int,
        storage_tokens: int,
    ) -> None:
        device, host = self.cache.tokens_by_tier(resident.leaf_id)
        if device + host == 0 or gap.missing_tokens:
            reason = "fetched_at_admission" if storage_tokens else "lost"
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
            **(
                {
                    "fetched_tokens": gap.fetched_tokens,
                    "fetched_at_admission_tokens": storage_tokens,
                    "missing_tokens": gap.missing_tokens,
                }
                if self.storage.on
                else {}
            ),
        )

    def let_go(self, agent: Agent, now_s: float, reason: str) -> None:
        """The agent's request has ended, admitted or not: what we held for it is over.

        Not those of a gap that began meanwhile: a call may be announced while its turn still ends.
        """
        resident = self.residents.get(agent.key)
        if resident is not None and not resident.in_gap:
            self._unhold(resident, now_s, reason)

    def finished(self, agent: Agent, now_s: float) -> None:
        """The agent will not come back: what it has in the tree is the first to be evicted."""
        self.returns.forget(agent.key)
        resident = self.residents.get(agent.key)
        if resident is not None:
            self._unhold(resident, now_s, "agent_finished")
            self._end_gap(resident)

    def turn_ended(self, resident: Resident) -> None:
        """A new turn's KV is in the tree."""
        if resident.agent.calls:  # announced while the turn was still being streamed
            self.storage.path_renewed(resident, self._last_step_s)
            self._expect(resident)
            self._uninsured[resident.agent.key] = resident

    def evicted(self, key: AgentKey, tokens: int) -> None:
        """SGLang took ``tokens`` of the agent's path from the device."""
        self._evicted[key] += tokens

    def clear(self) -> None:
        """The tree was reset: nothing is anywhere any more."""
        for state in (
            *(self._held, self._uninsured, self._due, self._evicted),
            *(self._looks, self._starts),
        ):
            state.clear()
        self._uploading = None
        self.storage.clear()

    # -- each step ----------------------------------------------------------------------------

    def step(self, now_s: float, *, queue_waits: bool, keep_free_tokens: int) -> None:
        """Copies and uploads what is due; called once per scheduler step.

        Args:
            queue_waits: whether requests wait in the queue.
            keep_free_tokens: slots that a transfer must leave free or evictable.
        """
        self._measure_step(now_s)
        if self._evicted:
            self._note_evictions(now_s)
        if not self._looks:
            return
        while self._uninsured:
            resident = next(iter(self._uninsured.values()))
            if not self._insure(resident, now_s, keep_free_tokens):
                break
        if self._uploading is not None:
            self._finish_piece(self._uploading, now_s)
        for resident in self.storage.step(now_s, self.step_gap_s):
            self._moved_below_device(resident)
        interval = int(now_s / LOOK_INTERVAL_S)
        if interval > self._looked_in:
            for key in self._looks.pop_due(now_s, at_most=1):
                self._looked_in = interval
                self._look_again(self.residents[key], now_s)
        for key in self._starts.pop_due(now_s + self.step_gap_s):
            self._due[key] = self.residents[key]
            self._upload_again_s = now_s  # the new one may be smaller, or more urgent
        # While a queue waits, an upload would only take what it waits for, and the agent's own
        # request would queue behind it: SGLang then loads it at admission, layer by layer.
        if not self._due or not self._uploads or queue_waits or now_s < self._upload_again_s:
            return
        if self.cache.can_start_upload():
            self._start_due_upload(now_s, keep_free_tokens)

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

    def _insure(self, resident: Resident, now_s: float, keep_free_tokens: int) -> bool:
        """A copy locks the path until it is done: what others are sure to take must be left.

        Returns whether the agent is settled; if not, a later step may have the room.
        """
        leaf_id = resident.leaf_id
        if self.cache.uncopied_tokens(leaf_id) and not self.cache.leaves_room(
            leaf_id, keep_free_tokens
        ):
            return False
        queued = self.cache.insure(leaf_id)
        if queued is None and self.cache.ongoing_backup:
            return False  # the host may not drop what is still being written to storage
        del self._uninsured[resident.agent.key]
        if queued is None:
            self.log.record(now_s, resident.agent.key, Action.INSURE, "host_full")
        elif queued:
            self.log.record(now_s, resident.agent.key, Action.INSURE, "call_started", queued)
        return True

    def _note_evictions(self, now_s: float) -> None:
        """Leaves a record of what was taken from agents, and plans its way back."""
        for key, tokens in self._evicted.items():
            resident = self.residents.get(key)
            if resident is None:
                continue
            self.log.record(
                now_s,
                key,
                Action.RELEASE,
                _why_evictable(resident),
                tokens,
                expected_return_s=resident.return_s,
            )
            if resident.gap is not None:
                resident.gap.released_tokens += tokens
            if resident.in_gap and resident.residence in (Residence.DEVICE, Residence.HOST):
                self._see_where_it_is(resident)
                self._set_alarms(resident)
        self._evicted.clear()

    def _expect(self, resident: Resident) -> None:
        """The agent returns when the last of its open calls is expected to end."""
        expected = self.returns.of(resident.agent.key)
        assert expected is not None
        self._await(resident, expected).predicted_return_s = expected.at_s

    def _await(self, resident: Resident, expected: Return) -> Gap:
        if not resident.in_gap:
            self._see_where_it_is(resident)
        resident.expected = expected
        if resident.gap is None or resident.gap.returned_s is not None:
            resident.gap = Gap()
        self._set_alarms(resident)
        return resident.gap

    def _set_alarms(self, resident: Resident) -> None:
        key, return_s = resident.agent.key, resident.return_s
        assert return_s is not None
        look_s = return_s + self.config.hold_timeout_s
        if resident.agent.calls:
            look_s = min(look_s, self.returns.look_again_s(key))
        self._looks.set(key, look_s)
        self._due.pop(key, None)
        if resident.residence is Residence.HOST:
            self._starts.set(key, self.timing.start_s(return_s, resident.host_only_tokens))
        else:
            self._starts.cancel(key)
        if key in self.storage:
            below = resident.host_only_tokens + self.storage.tail_tokens(key)
            self.storage.plan(resident, self.timing.start_s(return_s, below))

    def _moved_below_device(self, resident: Resident) -> None:
        """The host tier has dropped a part of the agent's path, or has it from storage again."""
        if not resident.in_gap:
            return
        before = resident.residence
        if before is not Residence.UPLOADING:  # then it is seen when the piece ends
            self._see_where_it_is(resident)
            if before is Residence.HELD and resident.residence is Residence.DEVICE:
                resident.residence = before  # nothing came of it
        self._set_alarms(resident)

    def _see_where_it_is(self, resident: Resident) -> None:
        """Asks the tree how much of the path is on the host only."""
        resident.host_only_tokens = self.cache.host_only_tokens(resident.leaf_id)
        worth_a_load = resident.host_only_tokens >= self.cache.load_back_threshold
        resident.residence = Residence.HOST if worth_a_load else Residence.DEVICE

    def _look_again(self, resident: Resident, now_s: float) -> None:
        """A call lasts, or a return does not come."""
        assert resident.return_s is not None
        if now_s >= resident.return_s + self.config.hold_timeout_s:
            self._unhold(resident, now_s, "overdue")
            if not resident.agent.calls:
                self._end_gap(resident)
                return
        self.returns.revise(resident.agent, now_s)
        self._expect(resident)
        if resident.return_s > now_s + self.config.hold_timeout_s:
            self._unhold(resident, now_s, "return_slipped")

    def _finish_piece(self, resident: Resident, now_s: float) -> None:
        if self.cache.is_uploading(resident.leaf_id):
            return
        self._uploading = None
        if resident.residence is not Residence.UPLOADING:
            return  # its gap is over
        self._see_where_it_is(resident)
        loaded = self.cache.deepest_on_device(resident.leaf_id)
        if loaded is not None and self.cache.pin(resident.hold_holder, loaded):
            self._held[resident.agent.key] = resident
            if resident.residence is Residence.DEVICE:
                resident.residence = Residence.HELD
                tokens = resident.gap.uploaded_tokens if resident.gap is not None else 0
                self.log.record(now_s, resident.agent.key, Action.HOLD, "uploaded", tokens)
                return
        self._set_alarms(resident)  # for the next piece

    def _start_due_upload(self, now_s: float, keep_free_tokens: int) -> None:
        """Starts one piece for the agent that is expected first, of those for whom there is room."""
        soonest = heapq.nsmallest(
            UPLOADS_TRIED, self._due.values(), key=lambda r: (r.return_s, r.agent.seen_order)
        )
        for resident in soonest:
            if self._upload_piece(resident, now_s, keep_free_tokens):
                return
        self._upload_again_s = now_s + UPLOAD_RETRY_S

    def _upload_piece(self, resident: Resident, now_s: float, keep_free_tokens: int) -> bool:
        key = resident.agent.key
        gap = resident.gap
        assert gap is not None
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
        self._uploading = self._due.pop(key)
        reason = "return_predicted" if resident.agent.calls else "call_finished"
        self.log.record(
            now_s, key, Action.UPLOAD, reason, tokens, expected_return_s=resident.return_s
        )
        return True

    def _fits_hold_budget(self, resident: Resident) -> bool:
        if sum(other.tokens for other in self._held.values()) + resident.tokens <= (
            self.hold_budget_tokens
        ):
            return True  # without a walk through the tree for what they share
        holders = [other.hold_holder for other in self._held.values()]
        held = self.cache.pinned_tokens(holders, also=resident.leaf_id)
        return held <= self.hold_budget_tokens

    def _unhold(self, resident: Resident, now_s: float, reason: str) -> None:
        if self._held.pop(resident.agent.key, None) is not None:
            self.cache.unpin(resident.hold_holder)
            if resident.residence is Residence.HELD:
                resident.residence = Residence.DEVICE  # anybody may evict it now
            self.log.record(now_s, resident.agent.key, Action.UNHOLD, reason)

    def _end_gap(self, resident: Resident) -> None:
        key = resident.agent.key
        self.storage.gap_over(resident, self._last_step_s)
        for state in (self._uninsured, self._due):
            state.pop(key, None)
        self._looks.cancel(key)
        self._starts.cancel(key)
        resident.residence = Residence.DEVICE
        resident.expected = None
        resident.gap = None

    # -- for status ---------------------------------------------------------------------------

    def snapshot(self) -> dict[str, int]:
        return {
            "in_gap": len(self._looks),
            "uploading": int(self._uploading is not None),
            "held": len(self._held),
            "hold_budget_tokens": self.hold_budget_tokens,
            **(self.storage.snapshot() if self.storage.on else {}),
        }


def _why_evictable(resident: Resident) -> str:
    """What the agent was doing when its KV was the farthest from its use."""
    agent = resident.agent
    if agent.finished:
        return "finished"
    if agent.rids:
        return "queued"
    if agent.calls:
        return "in_call"
    return "returning" if resident.expected is not None else "idle"
