"""Applies the temporal policy to the cache: insure, expect, and what eviction has taken."""

from collections import Counter
from collections.abc import Callable

from tokencake_sglang.agents.alarms import Alarms
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.copies import Copies
from tokencake_sglang.engine.residents import Gap, Residence, Resident
from tokencake_sglang.engine.step_gap import StepGap
from tokencake_sglang.engine.storage import StorageFetches
from tokencake_sglang.engine.uploads import Uploads
from tokencake_sglang.observability.decisions import Action, DecisionLog
from tokencake_sglang.temporal.duration import DurationModel
from tokencake_sglang.temporal.returns import Return, Returns

LOOK_INTERVAL_S = 0.4
LOOKS = 4
"""In each such piece of time so many agents are expected anew, those whose time came first: a look
is the dearest thing that a step does without moving anything. Of a crowd the others wait; that some
go one after another makes them cheaper, for the next finds in the processor's cache what the first
needed."""

INSURES_TRIED = 4
"""Of agents whose KV is to be copied, how many are tried in a step if there is no room for it."""


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
        residents: dict[AgentKey, Resident],
        log: DecisionLog,
        uploads: Uploads,
        storage: StorageFetches,
        copies: Copies | None,
        is_critical: Callable[[Agent], bool],
    ) -> None:
        self.config = config
        self.cache = cache
        self.residents = residents
        self.log = log
        self.uploads = uploads
        self.storage = storage
        self.copies = copies
        self.returns = Returns(DurationModel(config.default_call_s), is_critical)
        self.step_gap = StepGap()
        self._uninsured: dict[AgentKey, Resident] = {}  # to be copied to the host, if not copied
        self._looks: Alarms[AgentKey] = Alarms()  # of all in a gap: when to expect them anew
        self._look_interval = 0  # the present piece of LOOK_INTERVAL_S, and what it has left
        self._looks_left = LOOKS
        self._evicted: Counter[AgentKey] = Counter()  # tokens since the last step
        self._lost: Counter[AgentKey] = Counter()  # likewise

    # -- what happens to agents ---------------------------------------------------------------

    def durations_known(self, durations: DurationModel) -> None:
        """What was learnt before the server was started again."""
        self.returns.durations = durations

    def call_started(self, agent: Agent, call: Call) -> None:
        self.returns.expect(agent, call, call.started_s)
        resident = self.residents.get(agent.key)
        if resident is None:
            return
        self.uploads.unhold(resident, call.started_s, "another_call_started")
        self._expect(resident)
        self._uninsured[agent.key] = resident

    def call_progressed(self, agent: Agent, call: Call, now_s: float) -> None:
        """The caller said how far its call is."""
        self.returns.expect(agent, call, now_s)
        resident = self.residents.get(agent.key)
        if resident is not None:
            self._expect(resident)
            self._let_go_if_slipped(resident, now_s)

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
            self.uploads.unhold(resident, now_s, "call_lapsed")
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
        self.uploads.unhold(resident, now_s, "admitted")

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
            if self.uploads.is_hidden(max(loaded_tokens, host)):
                reason = "load_hidden"
            else:
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
            **({} if gap.upload_due_s is None else {"upload_due_s": gap.upload_due_s}),
            **({} if gap.upload_kept_back is None else {"upload_kept_back": gap.upload_kept_back}),
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
            self.uploads.unhold(resident, now_s, reason)

    def finished(self, agent: Agent, now_s: float) -> None:
        """The agent will not come back: what it has in the tree is the first to be evicted."""
        self.returns.forget(agent.key)
        resident = self.residents.get(agent.key)
        if resident is not None:
            self.uploads.unhold(resident, now_s, "agent_finished")
            self._end_gap(resident)

    def turn_ended(self, resident: Resident) -> None:
        """A new turn's KV is in the tree."""
        if resident.agent.calls:  # announced while the turn was still being streamed
            self.storage.path_renewed(resident, self.step_gap.last_s)
            self._expect(resident)
            self._uninsured[resident.agent.key] = resident

    def evicted(self, key: AgentKey, tokens: int) -> None:
        """SGLang took ``tokens`` of the agent's path from the device."""
        self._evicted[key] += tokens

    def lost(self, key: AgentKey, tokens: int) -> None:
        """No tier has the last ``tokens`` of the agent's path any more."""
        self._lost[key] += tokens

    def clear(self) -> None:
        """The tree was reset: nothing is anywhere any more."""
        for state in (self._uninsured, self._evicted, self._lost, self._looks):
            state.clear()
        self.uploads.clear()
        self.storage.clear()

    # -- each step ----------------------------------------------------------------------------

    def tell(self, now_s: float, *, forward: bool) -> None:
        """Once per scheduler step.

        Args:
            forward: whether one is under way.
        """
        if self.step_gap.tell(now_s, forward=forward):
            self.uploads.forwards_take(self.step_gap.forward_s)

    @property
    def has_work(self) -> bool:
        """Whether ``step`` may have something to do although nothing was heard since the last one:
        otherwise time stands still between two stamps."""
        noted = self._evicted or self._lost or self._uninsured
        return bool(noted) or self.uploads.under_way or self.storage.under_way

    def step(self, now_s: float, *, queue_waits: bool, keep_free_tokens: int) -> None:
        """Copies and uploads what is due; after ``tell``, at most once per scheduler step.

        Args:
            queue_waits: whether requests wait in the queue.
            keep_free_tokens: slots that a transfer must leave free or evictable.
        """
        if self._evicted:
            self._note_evictions(now_s)
        if self._lost:
            self._note_losses(now_s)
        if not self._looks:
            return
        if self._uninsured:
            self._insure_all(now_s, keep_free_tokens)
        if (loaded := self.uploads.finish_piece(now_s)) is not None:
            self._set_alarms(loaded)
        for resident in self.storage.step(now_s, self.step_gap.longest_s):
            self._moved_below_device(resident)
        self._look_again_at_some(now_s)
        self.uploads.start_due(
            now_s,
            self.step_gap.longest_s,
            queue_waits=queue_waits,
            keep_free_tokens=keep_free_tokens,
        )

    def _look_again_at_some(self, now_s: float) -> None:
        interval = int(now_s / LOOK_INTERVAL_S)
        if interval > self._look_interval:
            self._look_interval, self._looks_left = interval, LOOKS
        if self._looks_left:
            for key in self._looks.pop_due(now_s, at_most=self._looks_left):
                self._looks_left -= 1
                self._look_again(self.residents[key], now_s)

    def _insure_all(self, now_s: float, keep_free_tokens: int) -> None:
        """As many as there is room for."""
        # Evicted first is what is used last: that is worth a copy most.
        last_used = sorted(
            self._uninsured.values(),
            key=lambda resident: (resident.return_s or 0.0, -resident.agent.seen_order),
        )
        tried: list[Resident] = []  # and not settled
        while True:
            while last_used and len(tried) < INSURES_TRIED:
                tried.append(last_used.pop())
            settled = next((r for r in tried if self._insure(r, now_s, keep_free_tokens)), None)
            if settled is None:
                return
            tried.remove(settled)

    def _insure(self, resident: Resident, now_s: float, keep_free_tokens: int) -> bool:
        """A copy locks the path until it is done: what others are sure to take must be left.

        Returns whether the agent is settled; if not, a later step may have the room.
        """
        leaf_id = resident.leaf_id
        uncopied = self.cache.uncopied_tokens(leaf_id)
        if not uncopied:
            del self._uninsured[resident.agent.key]
            return True
        if self.copies is not None and not self.copies.are_made_at_once(uncopied):
            del self._uninsured[resident.agent.key]
            self.log.record(now_s, resident.agent.key, Action.INSURE, "later", uncopied)
            return True
        if not self.cache.leaves_room(leaf_id, keep_free_tokens):
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
                self.uploads.see_where_it_is(resident)
                self._set_alarms(resident)
        self._evicted.clear()

    def _note_losses(self, now_s: float) -> None:
        for key, tokens in self._lost.items():
            resident = self.residents.get(key)
            if resident is None:
                continue
            self.log.record(now_s, key, Action.DROP, "lost", tokens)
            if resident.gap is not None:
                resident.gap.missing_tokens += tokens
            self._moved_below_device(resident)
        self._lost.clear()

    def _expect(self, resident: Resident) -> None:
        """The agent returns when the last of its open calls is expected to end."""
        expected = self.returns.of(resident.agent.key)
        assert expected is not None
        self._await(resident, expected).predicted_return_s = expected.at_s

    def _await(self, resident: Resident, expected: Return) -> Gap:
        if not resident.in_gap:
            self.uploads.see_where_it_is(resident)
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
        self.uploads.plan(resident)
        if key in self.storage:
            below = resident.host_only_tokens + self.storage.tail_tokens(key)
            self.storage.plan(resident, self.uploads.start_s(resident, below))

    def _moved_below_device(self, resident: Resident) -> None:
        """The tree has lost a part of the agent's path, or the host has it from storage again."""
        if not resident.in_gap:
            return
        before = resident.residence
        if before is not Residence.UPLOADING:  # then it is seen when the piece ends
            self.uploads.see_where_it_is(resident)
            if before is Residence.HELD and not self.uploads.is_worth_an_upload(resident):
                resident.residence = before  # nothing came of it
        self._set_alarms(resident)

    def _look_again(self, resident: Resident, now_s: float) -> None:
        """A call lasts, or a return does not come."""
        assert resident.return_s is not None
        if now_s >= resident.return_s + self.config.hold_timeout_s:
            self.uploads.unhold(resident, now_s, "overdue")
            if not resident.agent.calls:
                self._end_gap(resident)
                return
        self.returns.revise(resident.agent, now_s)
        self._expect(resident)
        self._let_go_if_slipped(resident, now_s)

    def _let_go_if_slipped(self, resident: Resident, now_s: float) -> None:
        """What is held for a return that is far away by now is of more use to others."""
        # By the time at which it would be uploaded: by its return, an upload for an early one would
        # be let go at once.
        upload_by_s = resident.upload_by_s
        assert upload_by_s is not None
        if upload_by_s > now_s + self.config.hold_timeout_s:
            self.uploads.unhold(resident, now_s, "return_slipped")

    def _end_gap(self, resident: Resident) -> None:
        key = resident.agent.key
        self.storage.gap_over(resident, self.step_gap.last_s)
        self._uninsured.pop(key, None)
        self._looks.cancel(key)
        self.uploads.gap_over(resident)
        resident.residence = Residence.DEVICE
        resident.expected = None
        resident.gap = None

    # -- for status ---------------------------------------------------------------------------

    def snapshot(self) -> dict[str, int]:
        return {
            "in_gap": len(self._looks),
            **self.uploads.snapshot(),
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
