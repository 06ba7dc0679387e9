"""Admission that leaves the reserve to critical agents, or asks a policy."""

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from tokencake_sglang.engine.planner import Planner
    from tokencake_sglang.engine.policy_planner import PolicyPlanner


def reserving_adder(base: type[PrefillAdder], planner: "Planner") -> type[PrefillAdder]:
    """A PrefillAdder for ``planner``'s scheduler, on top of whatever class SGLang would use."""

    class ReservingPrefillAdder(base):
        """Charges what is reserved to every request that is not critical.

        Never applied to chunks of a request that is already being prefilled, to running
        requests, to one for which others have been preempted, or when nothing runs: whoever is
        alone may have everything.
        """

        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            running = self.running_batch.reqs if self.running_batch is not None else []
            self._withheld_tokens = planner.spatial.withheld_tokens(running, planner.now_s)
            self._critical_ahead = planner.spatial.critical_waiting
            self._deferring = False
            self._preempted_for: Req | None = None

        def preempt_to_schedule(self, req: "Req", *args, **kwargs):
            preempted = super().preempt_to_schedule(req, *args, **kwargs)
            if preempted:
                self._preempted_for = req
            return preempted

        def add_one_req(self, req: "Req", *args, **kwargs):
            agent = planner.agent_of(req)
            if agent is not None and planner.spatial.is_critical(agent):
                self._critical_ahead -= 1
                return super().add_one_req(req, *args, **kwargs)
            alone = not self.can_run_list and not (
                self.running_batch is not None and self.running_batch.reqs
            )
            if self._withheld_tokens == 0 or alone or req is self._preempted_for:
                return super().add_one_req(req, *args, **kwargs)
            if not self._deferring:
                with self._charged(self._withheld_tokens):
                    result = super().add_one_req(req, *args, **kwargs)
                if result is not AddReqResult.NO_TOKEN:
                    return result
                planner.deferred(req)
                self._deferring = True  # and nobody smaller overtakes it
            # NO_TOKEN would close admission, for critical requests as well, until something
            # leaves. CONTINUE passes over this one; OTHER ends the pass.
            return AddReqResult.CONTINUE if self._critical_ahead > 0 else AddReqResult.OTHER

        @contextmanager
        def _charged(self, tokens: int):
            self.memory_budget.total_offset += tokens
            try:
                yield
            finally:
                self.memory_budget.total_offset -= tokens

    return ReservingPrefillAdder


def asking_adder(base: type[PrefillAdder], planner: "PolicyPlanner") -> type[PrefillAdder]:
    """A PrefillAdder that asks ``planner``'s policy about every request that is not alone."""

    class AskingPrefillAdder(base):
        def add_one_req(self, req: "Req", *args, **kwargs):
            alone = not self.can_run_list and not (
                self.running_batch is not None and self.running_batch.reqs
            )
            if alone:
                return super().add_one_req(req, *args, **kwargs)
            request = planner.request_of(req)
            if not planner.policy.admits(request, planner):
                planner.refused = True
                ends = planner.policy.refusal_ends_pass
                return AddReqResult.OTHER if ends else AddReqResult.CONTINUE
            withheld = planner.policy.withheld_tokens(request, planner)
            self.memory_budget.total_offset += withheld
            try:
                result = super().add_one_req(req, *args, **kwargs)
            finally:
                self.memory_budget.total_offset -= withheld
            # NO_TOKEN would end the pass for everybody.
            passes_over = withheld > 0 or planner.policy.backfills
            if result is AddReqResult.NO_TOKEN and passes_over:
                planner.found_memory_full = True
                return AddReqResult.CONTINUE
            return result

    return AskingPrefillAdder
