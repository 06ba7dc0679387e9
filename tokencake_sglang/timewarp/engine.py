"""SGLang's real Scheduler, in this process, against a virtual clock.

Admission, matching, eviction, load-back and retraction are SGLang's own code, stock or with the
extension loaded as a server loads it. The forward pass, the copies and the passing of time are a
cost model's. One engine per process: SGLang publishes its settings process-wide.
"""

import heapq
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokencake_sglang.agents.events import AnyEvent, Signal
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.timewarp.clock import VirtualClock, VirtualEvent, VirtualStream
from tokencake_sglang.timewarp.cost import CostModel, Work
from tokencake_sglang.timewarp.scheduler import (
    VOCABULARY,
    drop_real_time_work,
    start_scheduler,
    tokenized,
    write_slot_model,
)

__all__ = ["VOCABULARY", "Request", "Stuck", "TimeWarp", "Totals"]


class Stuck(RuntimeError):
    """Requests wait, nothing runs, and nothing that is still to come can change that."""


@dataclass(slots=True)
class Request:
    """One generation. Times are virtual seconds; token counts are SGLang's own."""

    rid: str
    prompt: Sequence[int]
    output: Sequence[int]
    tag: AgentTag | None = None
    priority: int | None = None
    on_finish: Callable[["Request"], None] | None = None
    queued_s: float = 0.0
    admitted_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    device_hit_tokens: int = 0
    host_hit_tokens: int = 0
    prefilled_tokens: int = 0
    retractions: int = 0


@dataclass(slots=True)
class Totals:
    """Sums over a run."""

    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    forward_s: float = 0.0
    load_wait_s: float = 0.0
    retractions: int = 0
    output_tokens: int = 0
    finished: int = field(default=0)


class TimeWarp:
    """Owns the scheduler and the clock.

    Args:
        pool_tokens: device slots; the tiny model's pool has exactly so many.
        host_tokens: host slots, 0 for no host tier.
        flags: further SGLang flags, such as ``--schedule-policy lpm`` or ``--enable-tokencake``.
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
    ) -> None:
        self.clock = VirtualClock()
        self.cost = cost
        self.overlap = overlap
        self.totals = Totals()
        self.requests: dict[str, Request] = {}
        self.observers: list[Callable[[TimeWarp], None]] = []
        self._forward_stream = VirtualStream(self.clock)
        self._produced: dict[str, int] = {}
        self._inbox: list[Any] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._next_tick_s = 0.0
        self.scheduler = self._build(
            pool_tokens + page_size,  # no request can be longer than the pool
            [
                *("--max-total-tokens", str(pool_tokens), "--page-size", str(page_size)),
                *("--chunked-prefill-size", str(chunked_prefill_tokens)),
                *("--max-running-requests", str(max_running_requests)),
                *(() if overlap else ("--disable-overlap-schedule",)),
                *self._host_flags(pool_tokens, host_tokens),
                *flags,
            ],
        )
        self._attach(host_tokens)
        self.front_door = self._front_door()

    # -- what a driver does -------------------------------------------------------------------

    def call_at(self, at_s: float, action: Callable[[], None]) -> None:
        """Runs ``action`` when the clock reaches ``at_s``; in order of time, then of asking."""
        heapq.heappush(self._timers, (at_s, next(self._timer_numbers), action))

    def submit(self, request: Request) -> None:
        """Queues a request now. Its output will be exactly ``request.output``."""
        request.queued_s = self.clock.now_s
        self.requests[request.rid] = request
        if request.tag is not None and self.front_door is not None:
            self.front_door.request_begin(request.tag, request.rid)
        tag = request.tag if self.front_door is not None else None
        self._inbox.append(
            tokenized(
                request.rid,
                request.prompt,
                len(request.output),
                tag=tag,
                priority=request.priority,
            )
        )

    def signal(self, signal: Signal) -> None:
        """Sends a signal now; without the extension nobody listens."""
        if self.front_door is not None:
            self.front_door.submit(signal)

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

    # -- the loop's other end -----------------------------------------------------------------

    def _receive(self) -> list[Any]:
        """Stands for ``recv_requests``, which each turn of SGLang's own loops begins with."""
        self._fire_timers()
        if self._is_idle() and not self._inbox:
            if not self._timers and not self.outstanding:
                self.scheduler.gracefully_exit = True
                return []
            self._skip_idle_time()
            self._fire_timers()
        for observe in self.observers:
            observe(self)
        taken, self._inbox = self._inbox, []
        return taken

    def _is_idle(self) -> bool:
        scheduler = self.scheduler
        pending = getattr(scheduler, "result_queue", None)
        return scheduler.last_batch is None and not pending

    def _skip_idle_time(self) -> None:
        """Nothing runs: time passes until something happens."""
        upcoming = [at_s for at_s in (self._next_timer_s(), self._next_tick()) if at_s is not None]
        if self._transfers is not None:
            copy_s = self._transfers.next_completion_s()
            if copy_s is not None:
                upcoming.append(copy_s)
        upcoming = [at_s for at_s in upcoming if at_s > self.clock.now_s]
        if upcoming:
            self.clock.advance_to(min(upcoming))
            self._idle_turns = 0
            return
        self._idle_turns += 1
        if self._idle_turns > 1000:
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

    # -- the model ----------------------------------------------------------------------------

    def _forward(self, batch: Any, **_: Any) -> Any:
        """Stands for the model worker's forward: costs time, emits the predetermined tokens."""
        import torch
        from sglang.srt.layers.logits_processor import LogitsProcessorOutput
        from sglang.srt.managers.utils import GenerationBatchResult

        start_s = max(self.clock.now_s, self._forward_stream.free_s)
        work_s = self.cost.forward_s(self._work(batch))
        end_s = start_s + work_s
        if batch.hicache_consumer_index >= 0 and self._transfers is not None:
            counter = self.scheduler.tree_cache.cache_controller.layer_done_counter
            loading = counter.events[batch.hicache_consumer_index]
            end_s = self._transfers.forward_end_s(start_s, work_s, loading)
            self.totals.load_wait_s += end_s - start_s - work_s
        self._forward_stream.submit(end_s - start_s, start_s)
        self.totals.steps += 1
        self.totals.forward_s += end_s - start_s
        tokens = [self._next_token(req, batch) for req in batch.reqs]
        if not self.overlap:
            self.clock.advance_to(end_s)
        self._forward_end_s = end_s
        return GenerationBatchResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=torch.tensor(tokens, dtype=torch.int64),
        )

    def _work(self, batch: Any) -> list[Work]:
        if batch.forward_mode.is_extend():
            self.totals.prefill_tokens += batch.extend_num_tokens
            prefixes, extends = batch.prefix_lens, batch.extend_lens
            for req, prefix, extend in zip(batch.reqs, prefixes, extends, strict=True):
                self._note_admission(req, prefix, extend)
            return [Work(new, old) for new, old in zip(extends, prefixes, strict=True)]
        self.totals.decode_tokens += len(batch.reqs)
        return [Work(1, len(req.origin_input_ids) + self._produced[req.rid]) for req in batch.reqs]

    def _note_admission(self, req: Any, prefix_tokens: int, extend_tokens: int) -> None:
        request = self.requests[req.rid]
        if request.admitted_s is None:
            request.admitted_s = self.clock.now_s
            request.host_hit_tokens = req.host_loaded_length or 0
            request.device_hit_tokens = prefix_tokens - request.host_hit_tokens
        request.prefilled_tokens += extend_tokens

    def _next_token(self, req: Any, batch: Any) -> int:
        output = self.requests[req.rid].output
        if batch.forward_mode.is_extend():
            if req is batch.chunked_req:
                return 0  # a prompt's middle: SGLang drops the token
            self._produced[req.rid] = len(req.output_ids)  # not 0 after a retraction
        index = self._produced[req.rid]
        self._produced[req.rid] = index + 1
        return output[min(index, len(output) - 1)]

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
        self._produced.pop(request.rid, None)
        if request.tag is not None and self.front_door is not None:
            self.front_door.request_end(request.rid)
        if request.on_finish is not None:
            request.on_finish(request)

    # -- construction -------------------------------------------------------------------------

    @staticmethod
    def _host_flags(pool_tokens: int, host_tokens: int) -> tuple[str, ...]:
        if host_tokens == 0:
            return ()
        return (
            "--enable-hierarchical-cache",
            *("--hicache-ratio", str(host_tokens / pool_tokens)),
            *("--hicache-io-backend", "direct", "--hicache-mem-layout", "layer_first"),
        )

    def _build(self, context_tokens: int, flags: Sequence[str]) -> Any:
        with tempfile.TemporaryDirectory(prefix="timewarp-") as directory:
            model = write_slot_model(Path(directory), context_tokens=context_tokens)
            return start_scheduler(
                [
                    *("--model-path", str(model), "--load-format", "dummy"),
                    *("--skip-tokenizer-init", "--device", "cpu"),
                    *("--attention-backend", "torch_native", "--log-level", "error"),
                    *flags,
                ]
            )

    def _attach(self, host_tokens: int) -> None:
        """Puts the virtual parts into the scheduler; everything else stays SGLang's."""
        from tokencake_sglang.timewarp.streams import VirtualTransfers

        scheduler = self.scheduler
        scheduler.tp_worker.forward_batch_generation = self._forward
        scheduler.model_worker.forward_batch_generation = self._forward
        # Frozen dataclasses: their classes are patched.
        receiver, streamer = type(scheduler.request_receiver), type(scheduler.output_streamer)
        receiver.recv_requests = lambda _self, local_reqs=None: self._receive()
        streamer.stream_output = lambda _self, reqs, *_, **__: self._collect(reqs)
        drop_real_time_work(scheduler)
        self._idle_turns = 0
        self._forward_end_s = 0.0
        self._transfers: VirtualTransfers | None = None
        controller = scheduler.tree_cache.cache_controller
        if controller is not None:
            self._transfers = VirtualTransfers(self.clock, self.cost, self._forward_stream)
            self._transfers.attach(controller)
        # Overlap loop: processing a result waits until its forward has ended.
        scheduler._copy_result_to_cpu = self._result_on_its_way

    def _result_on_its_way(self, result: Any, _batch: Any) -> None:
        """Stands for the copy of the sampled tokens to the host."""
        result.copy_done = VirtualEvent(self.clock, self._forward_end_s)

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
