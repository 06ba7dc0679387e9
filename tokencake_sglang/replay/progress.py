"""What is certain about a run's future, from what has ended so far.

The closed loop tells a driver what happens next; this tells an observer when a request that
nobody has sent yet will be sent, as soon as that can no longer change.
"""

from collections.abc import Callable

from tokencake_sglang.replay.workload import Request, Workload


class Progress:
    """Reads no clock.

    Args:
        finished_s: when a request ended, by its id; None while it has not.
    """

    def __init__(self, workload: Workload, finished_s: Callable[[str], float | None]) -> None:
        self._by_id = workload.by_id
        self._finished_s = finished_s
        self._settled_s: dict[str, float] = {}

    def settled_s(self, request_id: str) -> float | None:
        """When the request and the call after it are over; None while that is open.

        Known as soon as the request, and all that its call waits for, have ended: the call's
        duration is the workload's.
        """
        known = self._settled_s.get(request_id)
        if known is not None:
            return known
        end_s = self._finished_s(request_id)
        call = self._by_id[request_id].call
        if end_s is None:
            return None
        if call is not None:
            for other in call.until:
                other_s = self.settled_s(other)
                if other_s is None:
                    return None
                end_s = max(end_s, other_s)
            end_s += call.wait_s
        self._settled_s[request_id] = end_s
        return end_s

    def dispatch_s(self, request: Request) -> float | None:
        """When the request is sent, in the past or in the future; None while that is open."""
        ready_s = request.arrival_s or 0.0
        for name in request.wait_for:
            settled_s = self.settled_s(name)
            if settled_s is None:
                return None
            ready_s = max(ready_s, settled_s)
        if request.spawned_by is not None:
            ended_s = self._finished_s(request.spawned_by)
            if ended_s is None:
                return None
            ready_s = max(ready_s, ended_s)
        return ready_s + request.delay_s
