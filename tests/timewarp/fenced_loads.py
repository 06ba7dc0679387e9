"""Runs in which every load is compared with the forward under way; for forked processes."""

import random
from dataclasses import asdict, dataclass
from typing import Any

from tests.timewarp.runs import prompt, time_warp
from tokencake_sglang.agents.events import CallFinish, CallStart
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.timewarp.engine import Request, TimeWarp

AGENTS = 32
TURNS = 3
POOL_TOKENS = 6_144


@dataclass
class Watched:
    """Counts of a run. *Hit* are slots that the forward under way writes, or reads for a request
    that goes on."""

    fenced_loads: int = 0
    unfenced_loads: int = 0
    fenced_hits: int = 0
    unfenced_hits: int = 0
    aborted: int = 0
    retractions: int = 0
    chunked_forwards: int = 0


class Watch:
    """Knows the slots of the forward under way, and asks at each load whether it is given one."""

    def __init__(self, warp: TimeWarp) -> None:
        self.seen = Watched()
        self._scheduler = warp.scheduler
        self._written: set[int] = set()
        self._read: list[tuple[Any, set[int]]] = []
        self._run_batch = warp.scheduler.run_batch
        warp.scheduler.run_batch = self._launch
        self._controller = warp.scheduler.tree_cache.cache_controller
        self._start_loading = self._controller.start_loading
        self._controller.start_loading = self._load

    def _launch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if batch.out_cache_loc is not None:
            self._written = set(batch.out_cache_loc.tolist())
            rows = self._scheduler.req_to_token_pool.req_to_token
            self._read = [
                (req, set(rows[row, : int(length)].tolist()))
                for req, row, length in zip(
                    batch.reqs, batch.req_pool_indices, batch.seq_lens_cpu, strict=True
                )
            ]
            self.seen.chunked_forwards += (
                batch.forward_mode.is_extend() and batch.chunked_req is not None
            )
        return self._run_batch(batch, *args, **kwargs)

    def _load(self) -> int:
        controller = self._controller
        slots = {int(slot) for op in controller.load_queue for slot in op.device_indices}
        if slots:
            queued = set(self._scheduler.waiting_queue)  # retracted: its result is dropped
            read = [s for req, s in self._read if not req.finished() and req not in queued]
            hits = len(slots & self._written) + sum(len(slots & one) for one in read)
            if controller.load_fence_stream is None:
                self.seen.unfenced_loads += 1
                self.seen.unfenced_hits += hits
            else:
                self.seen.fenced_loads += 1
                self.seen.fenced_hits += hits
        return self._start_loading()


class Agents:
    """Agents that come and go on a pool too small for them. Clients go away, most of all in the middle
    of a long prompt, when the forward under way writes a whole chunk that is freed at once.

    Those of one application begin alike, so that what one frees another may read.
    """

    def __init__(self, warp: TimeWarp, watch: Watch, seed: int) -> None:
        self.warp = warp
        self.watch = watch
        self.rng = random.Random(seed)
        warp.observers.append(lambda _: self._go_away())
        for number in range(AGENTS):
            length = 1500 if number % 4 == 0 else self.rng.randrange(64, 400)
            context = prompt(number // 4, 256) + self._tokens(length)
            warp.call_at(4.0 * self.rng.random(), lambda n=number, c=context: self._turn(n, 0, c))

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(3, 120) for _ in range(count)]

    def _turn(self, number: int, turn: int, context: list[int]) -> None:
        tag = AgentTag(agent=f"a{number}", application=f"app{number // 4}")
        output = [5] * (50 * self.rng.randrange(1, 12))
        rid = f"{number}-{turn}-"  # SGLang aborts whatever begins so
        self.warp.submit(
            Request(rid, context, output, tag=tag, on_finish=lambda r: self._stall(number, turn, r))
        )

    def _stall(self, number: int, turn: int, request: Request) -> None:
        if turn + 1 == TURNS:
            return
        who: dict[str, Any] = {"agent": f"a{number}", "application": f"app{number // 4}"}
        gap_s = self.rng.choice([0.05, 1.0, 4.0])
        call = str(turn)
        self.warp.signal(CallStart(**who, call_id=call, tool="tool", predicted_s=gap_s))
        told = self._tokens(self.rng.choice([20, 100, 1200]))
        context = [*request.prompt, *request.output, *told]

        def back() -> None:
            self.warp.signal(CallFinish(**who, call_id=call))
            self._turn(number, turn + 1, context)

        self.warp.call_at(self.warp.clock.now_s + gap_s, back)

    def _go_away(self) -> None:
        scheduler = self.warp.scheduler
        if scheduler.chunked_req is not None and self.rng.random() < 0.3:
            self._abort(scheduler.chunked_req)
        for req in scheduler.running_batch.reqs:
            if self.rng.random() < 0.0005:
                self._abort(req)

    def _abort(self, req: Any) -> None:
        from sglang.srt.managers.io_struct import AbortReq

        if not req.finished():
            self.watch.seen.aborted += 1
            # What came out until then is what was wanted.
            self.warp.requests[req.rid].output = req.output_ids
            self.warp.scheduler.abort_request(AbortReq(rid=req.rid))


def watched_loads(seed: int, page_size: int, rule: str = "ours") -> dict[str, int]:
    """Random agents under overlapped scheduling; now and then a request is retracted.

    Args:
        rule: ``"ours"``, ``"sglang"`` for its fence behind everything, ``"none"`` for no fence at all.
    """
    from sglang.srt.managers import scheduler as scheduler_module

    scheduler_module.TEST_RETRACT, scheduler_module.TEST_RETRACT_INTERVAL = True, 50
    without = ("headroom", *(("load-fence",) if rule == "sglang" else ()))
    warp = time_warp(
        pool_tokens=POOL_TOKENS,
        host_tokens=8 * POOL_TOKENS,
        page_size=page_size,
        chunked_prefill_tokens=512,
        flags=("--enable-tokencake", "--tokencake-without", ",".join(without)),
    )
    fence = warp.scheduler.tree_cache.load_fence
    assert (fence is None) == (rule == "sglang")
    if rule == "none":
        fence.needed = lambda: False
    watch = Watch(warp)
    Agents(warp, watch, seed)
    warp.run()
    watch.seen.retractions = warp.totals.retractions
    return asdict(watch.seen)
