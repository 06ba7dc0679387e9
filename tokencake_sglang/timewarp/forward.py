"""The model of a run: a forward pass costs time and emits tokens that were known before."""

from collections.abc import Sequence
from typing import Any

from tokencake_sglang.timewarp.clock import VirtualClock, VirtualEvent, VirtualStream
from tokencake_sglang.timewarp.cost import CostModel, Work
from tokencake_sglang.timewarp.requests import Request, Totals
from tokencake_sglang.timewarp.streams import VirtualTransfers


class VirtualForward:
    """Stands for SGLang's model worker and for the way of its results to the host.

    Args:
        requests: by rid; their outputs are what the model says. Notes of admission go there.
        overlap: whether SGLang's loop launches a forward before it processes the one before. The
            clock then stays where it is at a launch, and moves when a result is waited for.
    """

    def __init__(
        self,
        clock: VirtualClock,
        cost: CostModel,
        requests: dict[str, Request],
        totals: Totals,
        *,
        overlap: bool,
    ) -> None:
        self.clock = clock
        self.cost = cost
        self.requests = requests
        self.totals = totals
        self.overlap = overlap
        self.stream = VirtualStream(clock)
        self.transfers: VirtualTransfers | None = None
        self._produced: dict[str, int] = {}
        self._end_s = 0.0

    def attach(self, scheduler: Any) -> None:
        """Puts itself, and virtual copies where there is a host tier, into a Scheduler."""
        scheduler.tp_worker.forward_batch_generation = self.run
        scheduler.model_worker.forward_batch_generation = self.run
        # Overlap loop: processing a result waits for this copy, which ends with its forward.
        scheduler._copy_result_to_cpu = self._send_result
        controller = scheduler.tree_cache.cache_controller
        if controller is not None:
            self.transfers = VirtualTransfers(self.clock, self.cost, self.stream)
            self.transfers.attach(controller)

    def run(self, batch: Any, **_: Any) -> Any:
        """Stands for ``forward_batch_generation``."""
        import torch
        from sglang.srt.layers.logits_processor import LogitsProcessorOutput
        from sglang.srt.managers.utils import GenerationBatchResult

        start_s = max(self.clock.now_s, self.stream.free_s)
        extends = batch.forward_mode.is_extend()
        work_s = self.cost.forward_s(self._prefill(batch) if extends else self._decode(batch))
        end_s = start_s + work_s
        if self.transfers is not None and batch.hicache_consumer_index >= 0:
            end_s = self.transfers.forward_end_s(start_s, work_s, batch.hicache_consumer_index)
            self.totals.load_wait_s += end_s - (start_s + work_s)
        self.stream.submit(end_s - start_s, start_s)
        if self.transfers is not None:
            self.transfers.launched(start_s, end_s, extends=extends)
        self.totals.steps += 1
        self.totals.forward_s += end_s - start_s
        if not self.overlap:
            self.clock.advance_to(end_s)
        self._end_s = end_s
        return GenerationBatchResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=torch.tensor(self._next_tokens(batch, extends), dtype=torch.int64),
        )

    def forget(self, rid: str) -> None:
        self._produced.pop(rid, None)

    def _send_result(self, result: Any, _batch: Any) -> None:
        result.copy_done = VirtualEvent(self.clock, self._end_s)

    def _prefill(self, batch: Any) -> list[Work]:
        self.totals.prefill_tokens += batch.extend_num_tokens
        work = []
        for req, context, new in zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
            self._note_admission(req, context, new)
            work.append(Work(new, context))
        return work

    def _decode(self, batch: Any) -> list[Work]:
        self.totals.decode_tokens += len(batch.reqs)
        return [Work(1, len(req.origin_input_ids) + self._produced[req.rid]) for req in batch.reqs]

    def _note_admission(self, req: Any, prefix_tokens: int, extend_tokens: int) -> None:
        request = self.requests[req.rid]
        if request.admitted_s is None:
            request.admitted_s = self.clock.now_s
            request.host_hit_tokens = req.host_loaded_length or 0
            request.device_hit_tokens = prefix_tokens - request.host_hit_tokens
        request.prefilled_tokens += extend_tokens

    def _next_tokens(self, batch: Any, extends: bool) -> Sequence[int]:
        tokens = []
        for req in batch.reqs:
            if extends:
                if req is batch.chunked_req:
                    tokens.append(0)  # a prompt's middle: SGLang drops the token
                    continue
                index = len(req.output_ids)  # not 0 after a retraction
            else:
                index = self._produced[req.rid]
            self._produced[req.rid] = index + 1
            output = self.requests[req.rid].output
            tokens.append(output[min(index, len(output) - 1)])
        return tokens
