"""The closed loop: which request is dispatched when, given when the earlier ones ended.

Reads no clock: whoever drives it says what time it is. A driver alternates ``pop_due(now)``, which
says what happens, and ``finish(request_id, now)``, which says what the server did.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tokencake_sglang.replay.workload import Request, Workload


@dataclass(frozen=True)
class Dispatch:
    """The request is sent to the server at ``time_s``."""

    time_s: float
    request: Request


@dataclass(frozen=True)
class CallReturned:
    """The tool call in which the request's agent stopped is over at ``time_s``."""

    time_s: float
    request: Request


Event = Dispatch | CallReturned


class ClosedLoop:
    """Holds what is under way in one run of a workload.

    A request is *settled* when it has ended and the call that followed it, if any, has returned.
    Events of the same time come in the order in which they became certain.
    """

    def __init__(self, workload: Workload) -> None:
        self._by_id = workload.by_id
        self._queue: list[tuple[float, int, Event]] = []
        self._pushed = 0
        self._running: set[str] = set()
        self._unsettled = len(workload.requests)
        self._after_settled: dict[str, list[str]] = {}
        self._after_end: dict[str, list[str]] = {}
        self._call_until: dict[str, list[str]] = {}
        self._missing: Counter[str] = Counter()
        self._ready_s: dict[str, float] = {}
        self._call_missing: Counter[str] = Counter()
        self._call_ready_s: dict[str, float] = {}
        self._open: Counter[str] = Counter()
        self.started_s: dict[str, float] = {}
        """Application (or untagged request) → dispatch of its first request."""
        self.ended_s: dict[str, float] = {}
        """Application (or untagged request) → when its last request was settled."""
        for request in workload.requests:
            name = request.request_id
            self._open[request.group] += 1
            self._missing[name] = len(request.wait_for) + (request.spawned_by is not None)
            for other in request.wait_for:
                self._after_settled.setdefault(other, []).append(name)
            if request.spawned_by is not None:
                self._after_end.setdefault(request.spawned_by, []).append(name)
            if request.call is not None:
                self._call_missing[name] = 1 + len(request.call.until)
                for other in request.call.until:
                    self._call_until.setdefault(other, []).append(name)
            if request.arrival_s is not None:
                self._push(Dispatch(request.arrival_s + request.delay_s, request))

    @property
    def next_event_s(self) -> float | None:
        """When the next event happens if nothing ends before; None if none is certain yet."""
        return self._queue[0][0] if self._queue else None

    @property
    def done(self) -> bool:
        return not self._unsettled

    def pop_due(self, now_s: float) -> Iterator[Event]:
        """What has happened up to now, in order."""
        while self._queue and self._queue[0][0] <= now_s:
            _, _, event = heapq.heappop(self._queue)
            name = event.request.request_id
            if isinstance(event, Dispatch):
                self._running.add(name)
                self.started_s.setdefault(event.request.group, event.time_s)
            else:
                self._settle(name, event.time_s)
            yield event

    def finish(self, request_id: str, now_s: float) -> Request:
        """The server has emitted the request's last token; a call it stops in begins now.

        Raises:
            ValueError: if the request was not dispatched, or has ended already.
        """
        if request_id not in self._running:
            raise ValueError(f"request {request_id!r} is not running")
        self._running.remove(request_id)
        request = self._by_id[request_id]
        for name in self._after_end.get(request_id, ()):
            self._satisfy(name, now_s)
        if request.call is None:
            self._settle(request_id, now_s)
        else:
            self._satisfy_call(request_id, now_s)
        return request

    def _settle(self, request_id: str, time_s: float) -> None:
        self._unsettled -= 1
        group = self._by_id[request_id].group
        self._open[group] -= 1
        if not self._open[group]:
            self.ended_s[group] = time_s
        for name in self._after_settled.get(request_id, ()):
            self._satisfy(name, time_s)
        for name in self._call_until.get(request_id, ()):
            self._satisfy_call(name, time_s)

    def _satisfy(self, name: str, time_s: float) -> None:
        self._ready_s[name] = max(time_s, self._ready_s.get(name, 0.0))
        self._missing[name] -= 1
        if not self._missing[name]:
            request = self._by_id[name]
            self._push(Dispatch(self._ready_s[name] + request.delay_s, request))

    def _satisfy_call(self, name: str, time_s: float) -> None:
        self._call_ready_s[name] = max(time_s, self._call_ready_s.get(name, 0.0))
        self._call_missing[name] -= 1
        if not self._call_missing[name]:
            request = self._by_id[name]
            assert request.call is not None
            self._push(CallReturned(self._call_ready_s[name] + request.call.wait_s, request))

    def _push(self, event: Event) -> None:
        self._pushed += 1
        heapq.heappush(self._queue, (event.time_s, self._pushed, event))


@dataclass(frozen=True)
class Schedule:
    """A run on a server that makes nobody wait: the bound that the graph itself sets."""

    dispatched_s: dict[str, float]
    finished_s: dict[str, float]
    application_s: dict[str, float]
    """Application → seconds from its first dispatch to its end: its critical path."""
    makespan_s: float
    most_running: int
    """The largest number of requests in service at once."""
    most_open: int
    """The largest number of applications begun and not ended at once."""


def schedule(
    workload: Workload, service_s: Callable[[Request], float] = lambda request: 0.0
) -> Schedule:
    """The workload on a server of unlimited size where a request takes ``service_s`` seconds.

    With a cost model's least time for a request this is the lower bound by critical path; with
    zero it is the tool time that no scheduler can remove.
    """
    loop = ClosedLoop(workload)
    running: list[tuple[float, str]] = []
    dispatched: dict[str, float] = {}
    finished: dict[str, float] = {}
    most_running = 0
    while not loop.done:
        upcoming = loop.next_event_s
        # Ends first: a request that ends as another begins is not in service together with it.
        if running and (upcoming is None or running[0][0] <= upcoming):
            now, name = heapq.heappop(running)
            finished[name] = now
            loop.finish(name, now)
            continue
        assert upcoming is not None, "a validated workload always goes on"
        for event in loop.pop_due(upcoming):
            if isinstance(event, Dispatch):
                name = event.request.request_id
                dispatched[name] = event.time_s
                heapq.heappush(running, (event.time_s + service_s(event.request), name))
        most_running = max(most_running, len(running))
    changes = sorted(
        [(time_s, 1) for time_s in loop.started_s.values()]
        + [(time_s, -1) for time_s in loop.ended_s.values()]
    )
    open_now = most_open = 0
    for _, change in changes:
        open_now += change
        most_open = max(most_open, open_now)
    return Schedule(
        dispatched_s=dispatched,
        finished_s=finished,
        application_s={name: end - loop.started_s[name] for name, end in loop.ended_s.items()},
        makespan_s=max(loop.ended_s.values(), default=0.0),
        most_running=most_running,
        most_open=most_open,
    )
