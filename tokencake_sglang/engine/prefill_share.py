"""Admission beside a prompt in chunks: short prompts do not wait until a long one is done.

SGLang gives a prompt that is prefilled in chunks every step whole, until it is done. Its policy
``shortest-prefill-first`` leaves shorter ones a part, by the limit that is used here, but does not
keep free what the long one still needs: where memory is short the scheduler then ends with "Prefill
out of memory" (``hicache-spf`` in docs/benchmarks.md).
"""

from typing import TYPE_CHECKING

from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS, AddReqResult, PrefillAdder
from sglang.srt.runtime_context import get_parallel, get_schedule

from tokencake_sglang.spatial.prefill_share import Short, shared_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sglang.srt.managers.schedule_batch import Req

    from tokencake_sglang.engine.planner import Planner


def sharing_adder(base: type[PrefillAdder], planner: "Planner") -> type[PrefillAdder]:
    """A PrefillAdder on top of ``base`` that lets short prompts in beside one in chunks."""

    class SharingPrefillAdder(base):
        def add_chunked_req(self, req: "Req"):
            step_tokens = self.rem_chunk_tokens
            if step_tokens is None or self.dllm_config is not None or planner.aligns_chunks:
                return super().add_chunked_req(req)
            left_tokens = len(req.full_untruncated_fill_ids) - req.prefix_len
            needed_tokens = left_tokens + _answer_tokens(req)
            shared = shared_tokens(
                self._waiting(req),
                places=self._places(),
                left_tokens=left_tokens,
                step_tokens=step_tokens,
                memory_tokens=int(self.rem_total_tokens) - needed_tokens,
                page_size=self.page_size,
            )
            if shared:
                self.chunked_req_limit = (step_tokens - shared) // self.page_size * self.page_size
            unfinished = super().add_chunked_req(req)
            if unfinished is not None and self.chunked_req_limit is not None:
                # SGLang takes the rest for granted, for nobody else is admitted until it is done.
                # Its policy shortest-prefill-first limits chunks as well.
                taken_tokens = req.extend_end - req.prefix_len
                self.memory_budget.total_offset += needed_tokens - taken_tokens
            return unfinished

        def _places(self) -> int:
            """How many requests SGLang would still admit beside the prompt in chunks."""
            if self.running_batch.batch_is_full:
                return 0
            places = get_parallel().pp_max_micro_batch_size - self.running_batch.batch_size()
            if self.prefill_max_requests is not None:
                places = min(places, self.prefill_max_requests)
            return places - 1

        def _waiting(self, chunked: "Req") -> "Iterator[Short]":
            """Requests of applications that take part, and of no lower priority than the prompt in
            chunks; the others keep to SGLang's rule."""
            sign = 1 if get_schedule().schedule_low_priority_values_first else -1
            for req in planner.queue:
                agent = planner.agent_of(req)
                if agent is None or not planner.applications.takes_part(agent):
                    continue
                if planner.by_priority and req.priority * sign > chunked.priority * sign:
                    continue
                prompt_tokens = len(req.origin_input_ids) + len(req.output_ids)
                resident = planner.residents.get(agent.key)
                cached_tokens = 0 if resident is None else resident.tokens
                yield Short(
                    # One that does not continue its agent's path has all to be prefilled.
                    prefill_tokens=prompt_tokens - cached_tokens * (cached_tokens < prompt_tokens),
                    held_tokens=prompt_tokens + _answer_tokens(req),
                )

        def _select_prefill_admission(self, req: "Req", *, has_chunked_req: bool = False, **shape):
            admission = super()._select_prefill_admission(
                req, has_chunked_req=has_chunked_req, **shape
            )
            if has_chunked_req and getattr(admission, "is_chunked", False):
                return AddReqResult.CONTINUE  # SGLang keeps track of one prompt in chunks
            return admission

    return SharingPrefillAdder


def _answer_tokens(req: "Req") -> int:
    """As SGLang counts them at admission."""
    left = req.sampling_params.max_new_tokens - len(req.output_ids)
    return min(max(left, 0), CLIP_MAX_NEW_TOKENS)
