"""SGLang's real Scheduler, in this process, against a virtual clock.

Admission, matching, eviction, load-back and retraction are SGLang's own code, stock or with the
extension loaded as a server loads it. The forward pass, the copies and the passing of time are a
cost model's. One engine per process: SGLang publishes its settings process-wide.
"""

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tokencake_sglang.agents.events import AnyEvent, Signal
from tokencake_sglang.timewarp.clock import VirtualClock
from tokencake_sglang.timewarp.cost import CostModel
from tokencake_sglang.timewarp.ranks import Rank, Turn, broadcast_turns
from tokencake_sglang.timewarp.requests import END_TOKEN, Request, Totals
from tokencake_sglang.timewarp.scheduler import (
    VOCABULARY,
    drop_real_time_work,
    start_slot_scheduler,
    tokenized,
)

if TYPE_CHECKING:
    from tokencake_sglang.timewarp.streams import VirtualTransfers

__all__ = ["VOCABULARY", "Request", "Stuck", "TimeWarp", "Totals"]

QUIET_TURNS = 2
"""Turns of the loop that must come to nothing before time is skipped.

In the overlap loop the turn that processes the last result has scheduled before it; and the
extension may free in one turn what the next one admits.
"""

HOPELESS_TURNS = 1000


class Stuck(RuntimeError):
    """Requests wait, nothing runs, and nothing that is still to come can change that."""


class TimeWarp:
    """Owns the scheduler and the clock.

    Args:
        pool_tokens: device slots; the tiny model's pool has exactly so many.
        host_tokens: host slots, 0 for no host tier.
        flags: further SGLang flags, such as ``--schedule-policy lpm`` or ``--enable-tokencake``.
        rank: this process's, where there are several (``ranks.run_in_ranks``). Only rank 0 is
            driven; on the others ``requests`` and ``totals`` fill all the same.
    """

    def __init__(
        self,
        cost: CostModel,
        *,
        pool_tokens: int,
        host_tokens: int = 0,
        page_size: int = 16,
        chunked_prefill_tokens: int = 8192,
        max_running_requests: int = 256,
        overlap: bool = True,
        flags: Sequence[str] = (),
        rank: Rank = Rank(),  # noqa: B008 - immutable
    ) -> None:
        from tokencake_sglang.timewarp.forward import VirtualForward

        self.clock = VirtualClock()
        self.cost = cost
        self.overlap = overlap
        self.rank = rank
        self.totals = Totals()
        self.requests: dict[str, Request] = {}
        self.observers: list[Callable[[TimeWarp], None]] = []
        self._inbox: list[Any] = []
        self._submitted: list[Request] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._next_tick_s = 0.0
        self._quiet_turns = 0
        self._hopeless_turns = 0
        self.scheduler = start_slot_scheduler(
            pool_tokens=pool_tokens,
            host_tokens=host_tokens,
            page_size=page_size,
            kv_bytes_per_token=cost.model.kv_bytes_per_token,
            flags=[
                *self._link_flags(flags),
                *("--chunked-prefill-size", str(chunked_prefill_tokens)),
                *("--max-running-requests", str(max_running_requests)),
                *(() if overlap else ("--disable-overlap-schedule",)),
                *flags,
            ],
            rank=rank,
        )
        self._forward = VirtualForward(
            self.clock, cost, self.requests, self.totals, overlap=overlap
        )
        self._attach()
        self.front_door = self._front_door() if rank.number == 0 else None

    def _link_flags(self, flags: Sequence[str]) -> Sequence[str]:
        """The extension is told the link's speed, as after a calibration, unless ``flags`` say it."""
        if "--enable-tokencake" not in flags:
            return ()
        return ("--tokencake-link-bytes-per-s", repr(self.cost.load_bytes_per_s))

    # -- what a driver does -------------------------------------------------------------------

    def call_at(self, at_s: float, action: Callable[[], None]) -> None:
        """Runs ``action`` when the clock reaches ``at_s``; in order of time, then of asking."""
        heapq.heappush(self._timers, (at_s, next(self._timer_numbers), action))

    def submit(self, request: Request) -> None:
        """Queues a request now. Its output will be exactly ``request.output``.

        Raises:
            ValueError: for one with a limit whose output does not end with its only ``END_TOKEN``.
        """
        if request.limit is not None:
            *middle, last = request.output
            if last != END_TOKEN or END_TOKEN in middle:
                raise ValueError(
                    f"output of {request.rid}: it declares a limit, so its last token, and no "
                    f"other, must be {END_TOKEN}; the last is {last}"
                )
        request.queued_s = self.clock.now_s
        self.requests[request.rid] = request
        if self.rank.count > 1:
            self._submitted.append(request)
        tag = request.tag if self.front_door is not None else None
        if self.front_door is not None:
            self.front_door.request_begin(tag, request.rid)
        self._inbox.append(
            tokenized(
                request.rid,
                request.prompt,
                len(request.output) if request.limit is None else request.limit,
                tag=tag,
                priority=request.priority,
                stop_token=None if request.limit is None else END_TOKEN,
            )
        )

    def signal(self, signal: Signal) -> None:
        """Sends a signal now; without the extension nobody listens."""
        if self.front_door is not None:
            self.front_door.submit(signal)

    def cached_prefix(self, tokens: Any, limit: int) -> tuple[int, int]:
        """How many of the first ``limit`` tokens (an array) the device holds, and the last one's
        node. Reads the tree only: nothing is split or marked as used."""
        from sglang.srt.mem_cache.radix_cache import RadixKey

        core = self.scheduler.tree_cache.tree_core
        matched, node_id, _ = core.match_full_device_prefix(RadixKey(tokens, limit=limit))
        return matched, node_id

    def holds(self, node_id: int) -> bool:
        """Whether a node is in the tree and on the device, and with it the path to it."""
        try:
            return not self.scheduler.tree_cache.tree_core.is_full_device_evicted(node_id)
        except KeyError:
            return False

    def run(self) -> None:
        """Runs until every timer has fired and every request has finished.

        Raises:
            Stuck: when requests are left that nothing can finish.
        """
        self.scheduler.gracefully_exit = False
        self.scheduler.run_event_loop()

    @property
    def outstanding(self) -> int:
        return len(self.requests) - self.totals.finished

    @property
    def transfers(self) -> "VirtualTransfers | None":
        """The copies between device and host; None without a host tier."""
        return self._forward.transfers

    # -- the loop's other end -----------------------------------------------------------------

    def _receive(self) -> list[Any]:
        """Stands for ``recv_requests``, which each turn of SGLang's own loops begins with."""
        self._fire_timers()
        if self._is_busy() or self._inbox:
            self._quiet_turns = 0
        elif not self._timers and not self.outstanding:
            self.scheduler.gracefully_exit = True
            return []
        elif self._quiet_turns < QUIET_TURNS:
            self._quiet_turns += 1
        else:
            self._skip_idle_time()
            self._fire_timers()
        for observe in self.observers:
            observe(self)
        taken, self._inbox = self._inbox, []
        return taken

    def _is_busy(self) -> bool:
        """Whether the previous turn launched a forward, or one is left to be processed."""
        pending = getattr(self.scheduler, "result_queue", None)
        return self.scheduler.last_batch is not None or bool(pending)

    def _skip_idle_time(self) -> None:
        """Nothing runs: time passes until something happens."""
        upcoming = [at_s for at_s in (self._next_timer_s(), self._next_tick()) if at_s is not None]
        if self.transfers is not None:
            copy_s = self.transfers.next_completion_s()
            if copy_s is not None:
                upcoming.append(copy_s)
        upcoming = [at_s for at_s in upcoming if at_s > self.clock.now_s]
        if upcoming:
            self.clock.advance_to(min(upcoming))
            self._quiet_turns = self._hopeless_turns = 0
            return
        self._hopeless_turns += 1
        if self._hopeless_turns > HOPELESS_TURNS:
            waiting = [req.rid for req in self.scheduler.waiting_queue][:5]
            raise Stuck(
                f"at {self.clock.now_s:.3f} s {self.outstanding} requests are left, "
                f"the queue's head is {waiting}, and nothing is to come"
            )

    def _fire_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self.clock.now_s:
            heapq.heappop(self._timers)[2]()
        door = self.front_door
        if door is not None and self.clock.now_s >= self._next_tick_s and door.needs_ticks():
            door.tick()
            self._next_tick_s = self.clock.now_s + self._tick_interval_s

    def _next_timer_s(self) -> float | None:
        return self._timers[0][0] if self._timers else None

    def _next_tick(self) -> float | None:
        if self.front_door is None or not self.front_door.needs_ticks():
            return None
        return max(self._next_tick_s, self.clock.now_s + 1e-9)

    def _collect(self, reqs: Sequence[Any]) -> None:
        """Stands for the output streamer: notes first tokens and ends."""
        for req in reqs:
            request = self.requests.get(req.rid)
            if request is None or request.finished_s is not None:
                continue
            if request.first_token_s is None and req.output_ids:
                request.first_token_s = self.clock.now_s
            if req.finished():
                self._finish(request, req)

    def _finish(self, request: Request, req: Any) -> None:
        request.finished_s = self.clock.now_s
        request.retractions = req.retraction_count
        self.totals.finished += 1
        self.totals.retractions += req.retraction_count
        self.totals.output_tokens += len(req.output_ids)
        if list(req.output_ids) != list(request.output):
            raise AssertionError(
                f"{request.rid}: {len(req.output_ids)} tokens came out, {len(request.output)} "
                f"were to ({req.finished_reason})"
            )
        self._forward.forget(request.rid)
        if self.front_door is not None:
            self.front_door.request_end(request.rid)
        if request.on_finish is not None:
            request.on_finish(request)

    # -- several ranks ------------------------------------------------------------------------

    def _lead(self) -> list[Any]:
        received = self._receive()
        submitted, self._submitted = self._submitted, []
        turn = Turn.of(self.clock.now_s, self.scheduler.gracefully_exit, submitted)
        return [turn, *received]

    def _follow(self, turn: Turn) -> None:
        if self.rank.number == 0:
            return
        if self._is_busy() and self.clock.now_s != turn.now_s:
            raise RuntimeError(
                f"rank {self.rank.number} is at {self.clock.now_s!r} s and rank 0 at "
                f"{turn.now_s!r} s: they did not run the same batches"
            )
        self.clock.advance_to(turn.now_s)
        self.scheduler.gracefully_exit = turn.ends
        self.requests.update((request.rid, request) for request in turn.submitted)
        for observe in self.observers:
            observe(self)

    # -- construction -------------------------------------------------------------------------

    def _attach(self) -> None:
        """Puts the virtual parts into the scheduler; everything else stays SGLang's."""
        scheduler = self.scheduler
        self._forward.attach(scheduler)
        drop_real_time_work(scheduler)
        # Frozen dataclasses: their classes are patched.
        receiver, streamer = type(scheduler.request_receiver), type(scheduler.output_streamer)
        streamer.stream_output = lambda _self, reqs, *_, **__: self._collect(reqs)
        if self.rank.count > 1:
            broadcast_turns(receiver, self._lead if self.rank.number == 0 else None, self._follow)
        else:
            receiver.recv_requests = lambda _self, local_reqs=None: self._receive()

    def _front_door(self) -> Any:
        """The main process's part, on the virtual clock; None without the extension."""
        from tokencake_sglang.plugin import active_config

        config = active_config()
        self._tick_interval_s = config.tick_interval_s if config is not None else 0.0
        if config is None:
            return None
        from tokencake_sglang.engine.messages import TokencakeEvent
        from tokencake_sglang.signals.front_door import FrontDoor

        def send(sequence: int, stamp_s: float, event: AnyEvent) -> None:
            self._inbox.append(TokencakeEvent.of(sequence, stamp_s, event))

        return FrontDoor(config, send, lambda: self.clock.now_s)
