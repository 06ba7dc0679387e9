"""Admission that keeps applications outside the working set waiting."""

from typing import TYPE_CHECKING

from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder

from tokencake_sglang.engine.applications import Outside

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from tokencake_sglang.engine.planner import Planner


def working_set_adder(base: type[PrefillAdder], planner: "Planner") -> type[PrefillAdder]:
    """A PrefillAdder on top of ``base`` that takes newcomers in while there is room for them."""

    class WorkingSetPrefillAdder(base):
        def add_one_req(self, req: "Req", *args, **kwargs):
            alone = not self.can_run_list and not (
                self.running_batch is not None and self.running_batch.reqs
            )
            why = None if alone else planner.applications.why_outside(req, planner.now_s)
            if why is not None:
                planner.kept_outside(req, why)
                # The queue's order puts all that are outside last, behind them untagged requests
                # at most. Each one that is looked at has its prompt matched.
                behind = planner.spatial.untagged_waiting or not planner.orders
                if why is Outside.OVER_QUOTA:
                    tenants = planner.spatial.tenants_outside
                    behind = behind or not planner.applications.all_over_quota(tenants)
                return AddReqResult.CONTINUE if behind else AddReqResult.OTHER
            result = super().add_one_req(req, *args, **kwargs)
            if self.can_run_list and self.can_run_list[-1] is req:
                planner.applications.enters(req, planner.now_s)
            return result

    return WorkingSetPrefillAdder
