"""What a run cost in real time. Differs from run to run, so it is kept apart from the figures."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec


class Stopwatch:
    """Measures a TimeWarp's run from outside, by real time.

    ``loop_s`` is SGLang's event loop with all that it calls. ``own_s`` is the part spent behind
    its three seams to the replay: receiving (where time passes, requests are tokenized, the
    closed loop and the observers run), the forward (the cost model) and the output streamer.
    What is left is SGLang's scheduler and, where it is loaded, this extension's planner: matching,
    admission, eviction, batches and results, with what a forward and its copies make SGLang do.
    """

    def __init__(self, scheduler: Any) -> None:
        self.loop_s = 0.0
        self.own_s = 0.0
        self.planner_s: float | None = None
        """Inside the planner's work of a step; None while nobody has asked."""
        self._scheduler = scheduler
        receiver, streamer = type(scheduler.request_receiver), type(scheduler.output_streamer)
        receiver.recv_requests = self._own(receiver.recv_requests)
        streamer.stream_output = self._own(streamer.stream_output)
        for worker in {id(w): w for w in (scheduler.tp_worker, scheduler.model_worker)}.values():
            worker.forward_batch_generation = self._own(worker.forward_batch_generation)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the run."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.loop_s += time.perf_counter() - start_s

    def watch_planner(self) -> None:
        """Measures the planner as well: its step, admission's end, the queue's order and the end
        of a turn; not the delivery of signals. Call before the run; nothing without a planner."""
        planner = getattr(self._scheduler, "_tokencake_planner", None)
        if planner is None:
            return
        self.planner_s = 0.0
        for name in ("step", "batch_admitted", "nothing_runs", "order"):
            setattr(planner, name, self._planned(getattr(planner, name)))
        planner.cache.on_turn_end = self._planned(planner.cache.on_turn_end)

    def _own(self, function: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter

        def timed(*args: Any, **kwargs: Any) -> Any:
            start_s = clock()
            result = function(*args, **kwargs)
            self.own_s += clock() - start_s
            return result

        return timed

    def _planned(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start_s = time.perf_counter()
            result = function(*args, **kwargs)
            assert self.planner_s is not None
            self.planner_s += time.perf_counter() - start_s
            return result

        return timed


class MachineFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Real time. ``steps_per_s``: forward passes over ``real_s``, whatever the caller counts into
    that. ``scheduler_us_per_step``: microseconds of the loop beside ``Stopwatch.own_s``, which
    includes ``planner_us_per_step``; that one is None, and left out, where it was not measured."""

    real_s: float
    steps_per_s: float
    scheduler_us_per_step: float
    planner_us_per_step: float | None = None


def machine_figures(replay: Any, real_s: float) -> MachineFigures:
    """What a run that has ended cost.

    Args:
        replay: a ``Replay``.
        real_s: what the caller measured around it.
    """
    watch, steps = replay.stopwatch, max(1, replay.warp.totals.steps)
    return MachineFigures(
        real_s=real_s,
        steps_per_s=steps / real_s,
        scheduler_us_per_step=1e6 * (watch.loop_s - watch.own_s) / steps,
        planner_us_per_step=None if watch.planner_s is None else 1e6 * watch.planner_s / steps,
    )
