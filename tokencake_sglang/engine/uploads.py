"""Brings agents' KV back to the device ahead of their return, and holds it until their request."""

import heapq

from tokencake_sglang.agents.alarms import Alarms
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import AgentState
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.residents import Residence, Resident
from tokencake_sglang.engine.step_gap import piece_tokens
from tokencake_sglang.observability.decisions import Action, DecisionLog
from tokencake_sglang.temporal.upload import UploadTiming, headroom_tokens

UPLOAD_RETRY_S = 0.1
"""After a refusal to all that were asked; sooner if another agent's upload is due."""

UPLOADS_TRIED = 4
"""How many agents are asked, in one step, whether there is room for them."""


class Uploads:
    """The uploads and holds of one rank: one piece at a time, held within a budget.

    It is told by the temporal half when agents are expected, as ``Resident.expected``, and keeps
    where their paths are: ``Resident.residence`` and ``Resident.host_only_tokens``.
    """

    def __init__(
        self,
        config: TokencakeConfig,
        cache: TokencakeCache,
        timing: UploadTiming,
        residents: dict[AgentKey, Resident],
        log: DecisionLog,
        pool_tokens: int,
    ) -> None:
        self.config = config
        self.cache = cache
        self.timing = timing
        self.residents = residents
        self.log = log
        self.pool_tokens = pool_tokens
        self.hold_budget_tokens = int(config.hold_max * pool_tokens)
        self._on = "uploads" not in config.without
        self._held: dict[AgentKey, Resident] = {}  # pinned until their request is admitted
        self._starts: Alarms[AgentKey] = Alarms()  # when an upload must start
        self._due: dict[AgentKey, Resident] = {}  # whose upload must have started by now
        self._again_s = 0.0  # after a refusal: nobody is asked before
        self._kept_back = "off"  # why the last step started nothing, although something was due
        self._uploading: Resident | None = None
        self._least_tokens = cache.load_back_threshold  # fewer are not worth an upload

    # -- when and what ------------------------------------------------------------------------

    def see_where_it_is(self, resident: Resident) -> None:
        """Asks the tree how much of the path is on the host only; changes only ``resident``."""
        resident.host_only_tokens = self.cache.host_only_tokens(resident.leaf_id)
        worth_a_load = resident.host_only_tokens >= self.cache.load_back_threshold
        resident.residence = Residence.HOST if worth_a_load else Residence.DEVICE

    def is_worth_an_upload(self, resident: Resident) -> bool:
        """Whether so much is on the host only that forwards, as long as they are now, do not hide
        its load."""
        on_host = resident.residence is Residence.HOST
        return on_host and not self.is_hidden(resident.host_only_tokens)

    def forwards_take(self, forward_s: float) -> None:
        """What a forward of that length hides is not worth an upload."""
        hidden_tokens = self.timing.hidden_tokens(forward_s)
        self._least_tokens = max(self.cache.load_back_threshold, hidden_tokens)

    def is_hidden(self, tokens: int) -> bool:
        """Whether so many tokens are loaded at admission without anybody's waiting for them."""
        return tokens < self._least_tokens

    def start_s(self, resident: Resident, tokens: int) -> float:
        """When the upload of ``tokens`` must start to be complete when the agent needs it."""
        assert resident.upload_by_s is not None
        return self.timing.start_s(resident.upload_by_s, tokens)

    def plan(self, resident: Resident) -> None:
        """Plans the upload of what is on the host only, in place of what was planned before."""
        key = resident.agent.key
        self._not_due(resident)
        if resident.residence is Residence.HOST:
            self._starts.set(key, self.start_s(resident, resident.host_only_tokens))
        else:
            self._starts.cancel(key)

    def gap_over(self, resident: Resident) -> None:
        """Nothing more is uploaded for the agent. What it holds it keeps until ``unhold``."""
        self._not_due(resident)
        self._starts.cancel(resident.agent.key)

    def _not_due(self, resident: Resident) -> None:
        """If its upload was due, it has not started: that is kept for the record of its return."""
        if self._due.pop(resident.agent.key, None) is not None and resident.gap is not None:
            resident.gap.upload_kept_back = self._kept_back

    def clear(self) -> None:
        """The tree was reset: nothing is anywhere any more."""
        for state in (self._held, self._due, self._starts):
            state.clear()
        self._uploading = None

    # -- pieces -------------------------------------------------------------------------------

    @property
    def under_way(self) -> bool:
        """Whether an upload is due, or a piece of one is being loaded."""
        return self._uploading is not None or bool(self._due)

    def finish_piece(self, now_s: float) -> Resident | None:
        """Holds what has been loaded, once the piece under way is done.

        Returns the agent whose next piece is to be planned, if it has one.
        """
        resident = self._uploading
        if resident is None or self.cache.is_uploading(resident.leaf_id):
            return None
        self._uploading = None
        if resident.residence is not Residence.UPLOADING:
            return None  # its gap is over
        self.see_where_it_is(resident)
        loaded = self.cache.deepest_on_device(resident.leaf_id)
        if loaded is not None and self.cache.pin(resident.hold_holder, loaded):
            self._held[resident.agent.key] = resident
            if not self.is_worth_an_upload(resident):
                resident.residence = Residence.HELD
                tokens = resident.gap.uploaded_tokens if resident.gap is not None else 0
                self.log.record(now_s, resident.agent.key, Action.HOLD, "uploaded", tokens)
                return None
        return resident

    def start_due(
        self, now_s: float, step_gap_s: float, *, queue_waits: bool, keep_free_tokens: int
    ) -> None:
        """Starts at most one piece, of those that must start before the next step.

        Args:
            step_gap_s: how long a scheduler step takes at most, lately.
            queue_waits: whether requests wait in the queue.
            keep_free_tokens: slots that an upload must leave free or evictable; with the headroom
                of its kind (``temporal.upload``) if that is more.
        """
        for key in self._starts.pop_due(now_s + step_gap_s):
            resident = self.residents[key]
            if self.is_hidden(resident.host_only_tokens):
                continue  # asked now, not when planned: forwards may have been a prefill's then
            self._due[key] = resident
            if resident.gap is not None and resident.gap.upload_due_s is None:
                resident.gap.upload_due_s = now_s
            self._again_s = now_s  # the new one may be smaller, or more urgent
        # While a queue waits, an upload would only take what it waits for, and the agent's own
        # request would queue behind it: SGLang then loads it at admission, layer by layer.
        if not self._due or not self._on:
            return
        if queue_waits:
            self._kept_back = "queue_waits"
        elif now_s < self._again_s:
            pass  # what the last attempt was refused for
        elif not self.cache.can_start_upload():
            self._kept_back = "link_busy"
        else:
            piece = piece_tokens(
                self.config.upload_piece_tokens, self.timing.link_tokens_per_s, step_gap_s
            )
            self._start_soonest(now_s, piece, keep_free_tokens)

    def _start_soonest(self, now_s: float, most_tokens: int, keep_free_tokens: int) -> None:
        """Starts one piece for the agent that needs it first, of those for whom there is room."""
        soonest = heapq.nsmallest(
            UPLOADS_TRIED, self._due.values(), key=lambda r: (r.upload_by_s, r.agent.seen_order)
        )
        for resident in soonest:
            if self._upload_piece(resident, now_s, most_tokens, keep_free_tokens):
                self._kept_back = "link_busy"
                return
        self._again_s = now_s + UPLOAD_RETRY_S

    def _upload_piece(
        self, resident: Resident, now_s: float, most_tokens: int, keep_free_tokens: int
    ) -> bool:
        key = resident.agent.key
        gap = resident.gap
        assert gap is not None
        refusal = None
        tokens = 0
        if resident.agent.calls and not self._fits_hold_budget(resident):
            refusal = "hold_budget_spent"
        else:
            promised = resident.expected is not None and resident.expected.promised
            headroom = headroom_tokens(self.pool_tokens, promised=promised)
            keep_free_tokens = max(keep_free_tokens, headroom)
            tokens = self.cache.upload(resident.leaf_id, most_tokens, keep_free_tokens)
            if tokens == 0:
                refusal = "no_room"
        if refusal is not None:
            self._kept_back = refusal
            if not gap.upload_wanted:  # once a gap, not once a step
                self.log.record(now_s, key, Action.UPLOAD, refusal)
            gap.upload_wanted = True
            return False
        gap.upload_wanted = True
        gap.upload_kept_back = None
        gap.uploaded_tokens += tokens
        resident.residence = Residence.UPLOADING
        self._uploading = self._due.pop(key)
        reason = "return_predicted" if resident.agent.calls else "call_finished"
        self.log.record(
            now_s, key, Action.UPLOAD, reason, tokens, expected_return_s=resident.return_s
        )
        return True

    # -- holds --------------------------------------------------------------------------------

    def _fits_hold_budget(self, resident: Resident) -> bool:
        if sum(other.tokens for other in self._held.values()) + resident.tokens <= (
            self.hold_budget_tokens
        ):
            return True  # without a walk through the tree for what they share
        holders = [other.hold_holder for other in self._held.values()]
        held = self.cache.pinned_tokens(holders, also=resident.leaf_id)
        return held <= self.hold_budget_tokens

    def unhold(self, resident: Resident, now_s: float, reason: str) -> None:
        """Unpins what is held for the agent, if anything is."""
        if self._held.pop(resident.agent.key, None) is not None:
            self.cache.unpin(resident.hold_holder)
            if resident.residence is Residence.HELD:
                resident.residence = Residence.DEVICE  # anybody may evict it now
            self.log.record(now_s, resident.agent.key, Action.UNHOLD, reason)

    def drop_holds_of_queued(self, now_s: float) -> None:
        """While memory is short, a request that queues anyway must not hold what others need."""
        for resident in list(self._held.values()):
            if resident.agent.rids:
                self.unhold(resident, now_s, "queued")

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
        self.unhold(victim, now_s, reason)
        return True

    # -- for status ---------------------------------------------------------------------------

    def snapshot(self) -> dict[str, int]:
        return {
            "uploading": int(self._uploading is not None),
            "held": len(self._held),
            "hold_budget_tokens": self.hold_budget_tokens,
        }
