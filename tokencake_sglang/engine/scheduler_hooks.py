"""The hooks that run inside a scheduler process, and how a planner comes to a scheduler."""

import logging
from typing import TYPE_CHECKING, Any

from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.load_fence import LoadFence
from tokencake_sglang.engine.messages import (
    TokencakeEvent,
    TokencakeStatusReply,
    TokencakeStatusReq,
)
from tokencake_sglang.engine.rank import RankPlanner

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder, SchedulePolicy
    from sglang.srt.managers.scheduler import NextBatchPlan, Scheduler

logger = logging.getLogger(__name__)

PLANNER = "_tokencake_planner"
_ADDER = "_tokencake_adder"


def make_planner(config: TokencakeConfig, cache: TokencakeCache, **facts: Any) -> RankPlanner:
    """TokenCake's own planner, or the mechanism under the policy that the configuration names."""
    if config.policy == "tokencake":
        from tokencake_sglang.engine.planner import Planner

        return Planner(config, cache, **facts)
    from tokencake_sglang.engine.policy_planner import PolicyPlanner

    return PolicyPlanner(config, cache, **facts)


def planner_of(scheduler: "Scheduler") -> RankPlanner:
    """The scheduler's planner.

    Raises:
        RuntimeError: when the scheduler was built without one: a hook did not take.
    """
    planner = getattr(scheduler, PLANNER, None)
    if planner is None:
        raise RuntimeError(
            "tokencake: this scheduler has no planner; "
            "the hook on Scheduler.init_request_dispatcher did not run"
        )
    return planner


class SchedulerHooks:
    """Bound to one configuration; every method is a hook of the table in ``plugin.py``."""

    def __init__(self, config: TokencakeConfig) -> None:
        self.config = config

    def init_request_dispatcher(self, _result: None, scheduler: "Scheduler") -> None:
        """AFTER: builds the planner and takes delivery of the event log."""
        from sglang.utils import TypeBasedDispatcher

        cache = scheduler.tree_cache
        if not isinstance(cache, TokencakeCache):
            raise SystemExit(
                f"tokencake: the tree cache is a {type(cache).__name__}, not a TokencakeCache; "
                "leave --radix-cache-backend to the extension"
            )
        writes_log = scheduler.metrics_reporter.is_stats_logging_rank
        decodes = 0
        if self.config.policy == "tokencake":  # another policy gives nobody less than SGLang does
            from tokencake_sglang.engine.headroom import decodes_beside_prompt

            decodes = decodes_beside_prompt(scheduler)
            if self.config.temporal_on and "load-fence" not in self.config.without:
                cache.load_fence = LoadFence.of(scheduler)
        planner = make_planner(
            self.config,
            cache,
            pool_tokens=scheduler.max_total_num_tokens,
            kv_bytes_per_token=cache.kv_bytes_per_token,
            writes_log=writes_log,
            by_priority=scheduler.enable_priority_scheduling,
            decodes_beside_prompt=decodes,
            aligns_chunks=scheduler.truncation_align_size is not None,
        )
        setattr(scheduler, PLANNER, planner)
        self._check_host_tier(planner, writes_log=writes_log)

        def status(_request: TokencakeStatusReq) -> TokencakeStatusReply:
            return TokencakeStatusReply.of(planner.snapshot())

        scheduler._request_dispatcher += TypeBasedDispatcher(
            [(TokencakeEvent, planner.receive), (TokencakeStatusReq, status)]
        )
        # The queue's policy object does not know its scheduler.
        scheduler.policy._tokencake_planner = planner

    def _check_host_tier(self, planner: RankPlanner, *, writes_log: bool) -> None:
        agents, context_tokens = self.config.expected_agents, self.config.expected_context_tokens
        if agents is None or context_tokens is None or not writes_log:
            return
        from tokencake_sglang.spatial.host_tier import host_shortage

        shortage = host_shortage(
            agents=agents,
            context_tokens=context_tokens,
            host_tokens=planner.cache.cache_controller.mem_pool_host.size,
            pool_tokens=planner.pool_tokens,
        )
        if shortage is not None:
            logger.warning("tokencake: %s", shortage)

    def process_hicache_events(
        self, _result: None, scheduler: "Scheduler", *_: Any, **__: Any
    ) -> None:
        """AFTER, once a step before admission: finished transfers are reaped, nothing is matched."""
        planner = planner_of(scheduler)
        running = list(scheduler.running_batch.reqs)
        last = scheduler.last_batch
        if (
            last is not None
            and last is not scheduler.running_batch
            and last.forward_mode.is_extend()
        ):
            running += last.reqs  # just prefilled: SGLang merges them after this hook
        planner.step(scheduler.waiting_queue, running, scheduler.chunked_req)
        if scheduler.running_batch.batch_is_full and planner.reopens_admission(
            scheduler.waiting_queue
        ):
            scheduler.running_batch.batch_is_full = False

    def get_new_batch_prefill(
        self,
        plan: "NextBatchPlan",
        scheduler: "Scheduler",
        *_: Any,
        **__: Any,
    ) -> None:
        """AFTER: the batch waits for the uploads it reads; a starving queue frees pins."""
        planner = planner_of(scheduler)
        batch: ScheduleBatch | None = plan.batch_to_run
        planner.admission_over(scheduler.waiting_queue)
        if planner.closes_admission(admitted=batch is not None) and (
            batch is not None or not plan.running_batch.is_empty()
        ):
            plan.running_batch.batch_is_full = True
        if batch is not None:
            planner.batch_admitted(batch)
        elif (
            scheduler.waiting_queue
            and plan.running_batch.is_empty()
            and scheduler.chunked_req is None
            and planner.left_waiting  # not for storage: no pin would help that
        ):
            planner.nothing_runs()

    def run_batch(self, scheduler: "Scheduler", *_: Any, **__: Any) -> None:
        """BEFORE: what is free now is unknown to the forward that is launched."""
        fence = scheduler.tree_cache.load_fence
        if fence is not None:
            fence.launched()

    def get_prefill_adder_class(
        self, adder: "type[PrefillAdder]", scheduler: "Scheduler"
    ) -> "type[PrefillAdder] | None":
        """AFTER: admission that leaves the reserve to critical agents."""
        if not hasattr(scheduler, _ADDER):
            setattr(scheduler, _ADDER, planner_of(scheduler).adder_class(adder))
        return getattr(scheduler, _ADDER)

    def calc_priority(
        self, _result: None, policy: "SchedulePolicy", waiting_queue: list, *_: Any, **__: Any
    ) -> None:
        """AFTER: reorders tagged requests within the places SGLang's policy gave them; where
        requests have priorities, only among those of the same one."""
        planner = getattr(policy, "_tokencake_planner", None)
        if planner is not None:
            planner.order(waiting_queue)
            if policy.enable_priority_scheduling:
                waiting_queue.sort(key=lambda req: req.priority * policy.priority_sign)
