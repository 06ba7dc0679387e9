"""Drives a virtual server through a workload, as its agents' programs would drive a real one."""

from collections.abc import Mapping

from tokencake_sglang.agents.events import (
    ApplicationFinish,
    ApplicationStart,
    CallFinish,
    CallStart,
)
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.engine.scheduler_hooks import PLANNER
from tokencake_sglang.policy import Policy
from tokencake_sglang.replay.closed_loop import CallReturned, ClosedLoop, Dispatch
from tokencake_sglang.replay.declarations import declared_graphs, declared_outputs
from tokencake_sglang.replay.machine import Stopwatch
from tokencake_sglang.replay.occupancy import Occupancy
from tokencake_sglang.replay.preemptions import Preemptions
from tokencake_sglang.replay.tenants import Holdings
from tokencake_sglang.replay.tokens import expand
from tokencake_sglang.replay.workflow import knowledge_of
from tokencake_sglang.replay.workload import Request as ReplayRequest
from tokencake_sglang.replay.workload import Workload
from tokencake_sglang.timewarp.engine import VOCABULARY, Request, TimeWarp
from tokencake_sglang.timewarp.requests import END_TOKEN


class Replay:
    """Drives a TimeWarp through a workload's closed loop.

    Args:
        priorities: whether requests carry SGLang's ``priority``: 1 for critical agents, else 0.
        declared_tokens: requests declare it as their limit, unless their output is longer, and end
            by themselves; None: all declare exactly what they will generate.
        occupancy_interval_s: virtual seconds between samples of the KV pool.
        tenants: whether tags name the workload's tenants.
        graphs: whether applications declare their graphs before their first requests.
        lengths: if they declare how much they will generate, how far off (``declared_outputs``).
    """

    def __init__(
        self,
        workload: Workload,
        warp: TimeWarp,
        *,
        priorities: bool = False,
        declared_tokens: int | None = None,
        occupancy_interval_s: float = 1.0,
        tenants: bool = True,
        graphs: bool = False,
        lengths: float | None = None,
    ) -> None:
        self.workload = workload
        self.loop = ClosedLoop(workload)
        self.warp = warp
        self.priorities = priorities
        self.declared_tokens = declared_tokens
        self.names_tenants = tenants
        self._graphs = declared_graphs(workload, warp.cost) if graphs else {}
        self._outputs = {} if lengths is None else declared_outputs(workload, lengths)
        self._declared: set[str] = set()
        self.returning: set[str] = set()
        """Requests sent that waited for others of their application. An application's first does
        not return, even if it waited for another application's end: in lanes each does."""
        self.occupancy = Occupancy(workload, warp, interval_s=occupancy_interval_s)
        self.holdings: Holdings | None = None
        """What each tenant held, where the workload names any."""
        if any(request.tenant is not None for request in workload.requests):
            self.holdings = Holdings(workload, warp, interval_s=occupancy_interval_s)
        self.preemptions = Preemptions(warp.scheduler)
        self.stopwatch = Stopwatch(warp.scheduler)
        self._open = {name: len(requests) for name, requests in workload.applications.items()}

    def run(self) -> None:
        """Replays the workload to its end.

        Raises:
            RuntimeError: when the run ends before the workload does.
        """
        self._tell_policy()
        self._arm()
        with self.stopwatch.running():
            self.warp.run()
        if not self.loop.done:
            raise RuntimeError("the run ended before the workload did: a defect of the driver")

    @property
    def decisions(self) -> Mapping[str, int]:
        """How often the extension took each ``action.reason``; empty without it."""
        planner = getattr(self.warp.scheduler, PLANNER, None)
        return {} if planner is None else planner.log.counts

    def _tell_policy(self) -> None:
        """Policies of others are told what their papers have applications declare."""
        policy = getattr(getattr(self.warp.scheduler, PLANNER, None), "policy", None)
        if isinstance(policy, Policy):
            policy.prepare(knowledge_of(self.workload, self.warp.cost))

    def _arm(self) -> None:
        """Comes back when the loop's next event is due."""
        if (at_s := self.loop.next_event_s) is not None:
            self.warp.call_at(at_s, self._advance)

    def _advance(self) -> None:
        for event in self.loop.pop_due(self.warp.clock.now_s):
            if isinstance(event, CallReturned):
                self._call_returned(event.request)
            elif isinstance(event, Dispatch):
                self._dispatch(event.request)
        self._arm()

    def _declare(self, application: str) -> None:
        """Before its first request, what it has to say of itself."""
        graph, output_tokens = self._graphs.get(application), self._outputs.get(application)
        if application in self._declared or (graph is None and output_tokens is None):
            return
        self._declared.add(application)
        self.warp.signal(
            ApplicationStart(
                application=application, graph=graph, expected_output_tokens=output_tokens
            )
        )

    def _dispatch(self, request: ReplayRequest) -> None:
        before = (self.workload.by_id[other].application for other in request.wait_for)
        if request.application in before:
            self.returning.add(request.request_id)
        if request.application is not None:
            self._declare(request.application)
        output = expand(request.output, VOCABULARY)
        declared = self.declared_tokens
        if declared is not None:
            output[-1] = END_TOKEN  # whose KV nobody reads: no forward pass follows it
        self.warp.submit(
            Request(
                request.request_id,
                expand(request.prompt, VOCABULARY),
                output,
                tag=self._tag(request),
                priority=int(request.critical) if self.priorities else None,
                limit=None if declared is None else max(declared, len(output)),
                on_finish=lambda _done: self._finished(request),
            )
        )

    def _finished(self, request: ReplayRequest) -> None:
        self.loop.finish(request.request_id, self.warp.clock.now_s)
        if request.call is not None and request.agent is not None:
            self.warp.signal(
                CallStart(
                    agent=request.agent,
                    application=request.application,
                    call_id=request.request_id,
                    tool=request.call.tool,
                    predicted_s=request.call.declared_s,
                )
            )
        elif request.application is not None:
            self._settled(request.application)
        self._arm()

    def _call_returned(self, request: ReplayRequest) -> None:
        if request.agent is None or request.application is None:
            return
        self.warp.signal(
            CallFinish(
                agent=request.agent, application=request.application, call_id=request.request_id
            )
        )
        self._settled(request.application)

    def _settled(self, application: str) -> None:
        self._open[application] -= 1
        if self._open[application] == 0:
            self.warp.signal(ApplicationFinish(application=application))

    def _tag(self, request: ReplayRequest) -> AgentTag | None:
        if request.agent is None:
            return None
        return AgentTag(
            agent=request.agent,
            application=request.application,
            agent_type=request.agent_type,
            critical=request.critical,
            tenant=request.tenant if self.names_tenants else None,
        )
