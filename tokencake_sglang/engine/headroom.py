"""Admission with as much room for answers as answers of their kind take."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS, PrefillAdder

from tokencake_sglang.spatial.lengths import OutputLengths
from tokencake_sglang.spatial.prefill_share import SHARE

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler

    from tokencake_sglang.agents.table import Agent

MIXED_SHARE = 0.5
"""Part of a chunk that is taken to be prefill at least, where decoding is mixed with it."""


def decodes_beside_prompt(scheduler: "Scheduler") -> int:
    """The most tokens that a running request gets while one prompt is prefilled in chunks.

    None, unless SGLang mixes chunks with decoding or decodes between them. Nobody asks then whether
    the rest of the prompt still fits: if answers turn out longer than others of their kind and have
    taken its slots, no request can be retracted, and the scheduler ends.
    """
    chunk_tokens = scheduler.chunked_prefill_size
    decodes = int(scheduler.is_mixed_chunk) + scheduler.prefill_decode_interval
    if chunk_tokens is None or decodes == 0:
        return 0
    # What is mixed with decoding is a part of the chunk, and so is what shorter prompts take.
    least_tokens = max(1, int(chunk_tokens * MIXED_SHARE * (1.0 - SHARE)))
    return decodes * math.ceil(scheduler.max_req_input_len / least_tokens)


class Headroom:
    """Learns output lengths by agent type, and says what open requests may still need.

    Untagged requests, and those of a fixed length, stay with SGLang's own estimate: the declared
    limit for a newcomer, and the part of it that usually was taken lately for those that run.

    Args:
        least_tokens: expected of a request at least, however short answers of its kind are.
    """

    def __init__(self, agent_of: "Callable[[Req], Agent | None]", *, least_tokens: int = 0) -> None:
        self.agent_of = agent_of
        self.least_tokens = least_tokens
        self.lengths = OutputLengths()

    def turn_ended(self, agent: "Agent", req: "Req") -> None:
        by_itself = not req.sampling_params.ignore_eos
        if by_itself and not isinstance(req.finished_reason, FINISH_ABORT):
            self.lengths.learn(agent.agent_type, len(req.output_ids))

    def tokens_left(self, req: "Req") -> int | None:
        """At most what it declared; None where SGLang's estimate is to stay."""
        if req.sampling_params.ignore_eos:
            return None
        agent = self.agent_of(req)
        if agent is None:
            return None
        generated = len(req.output_ids)
        predicted = self.lengths.tokens_left(agent.agent_type, generated)
        if predicted is None:
            return None
        least = max(req.sampling_params.min_new_tokens - generated, self.least_tokens)
        return min(max(predicted, least), req.sampling_params.max_new_tokens - generated)

    @contextmanager
    def limits(self, req: "Req") -> Iterator[None]:
        """While a request is admitted its limit is what it is expected to take: SGLang reads the
        limit in several places."""
        left = self.tokens_left(req)
        declared = req.sampling_params.max_new_tokens
        if left is not None:
            req.sampling_params.max_new_tokens = len(req.output_ids) + left
        try:
            yield
        finally:
            req.sampling_params.max_new_tokens = declared


def headroom_adder(base: type[PrefillAdder], headroom: Headroom) -> type[PrefillAdder]:
    """A PrefillAdder on top of ``base`` that reserves what ``headroom`` says."""

    class HeadroomPrefillAdder(base):
        def _get_running_request_total_token_offset(self, req: "Req") -> float:
            left = headroom.tokens_left(req)
            if left is None:
                return super()._get_running_request_total_token_offset(req)
            return min(left, CLIP_MAX_NEW_TOKENS)

        def add_one_req(self, req: "Req", *args, **kwargs):
            with headroom.limits(req):
                return super().add_one_req(req, *args, **kwargs)

        def add_chunked_req(self, req: "Req", *args, **kwargs):
            with headroom.limits(req):
                return super().add_chunked_req(req, *args, **kwargs)

        def preempt_to_schedule(self, req: "Req", *args, **kwargs):
            with headroom.limits(req):
                return super().preempt_to_schedule(req, *args, **kwargs)

    return HeadroomPrefillAdder
