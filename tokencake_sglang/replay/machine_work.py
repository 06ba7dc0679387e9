"""The machine's seconds that no two applications can share, and when each of them can be.

They come in pieces. A forward takes at least as long as what it does of all pieces takes together.
Lay that out within the forward, one after the other: then one second of the machine is one second
of work, none of which is done before the head of its piece, for the forward is not, and the
application ends no sooner than the piece's tail later.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokencake_sglang.replay.closed_loop import Schedule
from tokencake_sglang.replay.critical_path import after_end_s, alone_s, decode_s, prefill_s
from tokencake_sglang.replay.least_work import LeastWork
from tokencake_sglang.replay.one_machine import Piece
from tokencake_sglang.replay.workload import Request, Workload
from tokencake_sglang.timewarp.cost import CostModel

DECODE_STEPS = 128
"""In one piece, at most: the fewer, the more its head and its tail say of each."""

_Pieces = dict[tuple[str, float, float], float]
"""Application, head and tail → work, all in seconds."""


def machine_work(
    workload: Workload,
    least: LeastWork,
    cost: CostModel,
    alone: Schedule,
    *,
    pool_tokens: int,
    max_running_requests: int,
    separate_forwards: bool = True,
) -> dict[str, tuple[Piece, ...]]:
    """Application → its pieces, each of more than no work.

    Prefill: the arithmetic of the stretches of prompt that only the application has, each once,
    where it is computed first: after one of the requests that have it has been sent, and not after
    the first token of any of them.
    Decode: for every token after the first the traffic of its context's KV, and a share of the
    step's fixed cost (one reading of the weights and the overhead). The requests of one step have
    shares that sum to at most one: a request's share is its least part of the pool, or else one
    in ``max_running_requests``, whichever rule makes the whole workload's work larger.

    Args:
        alone: the workload on a server that makes nobody wait, each request taking ``alone_s``.
        separate_forwards: as for ``bounds``.
    """
    after_s = after_end_s(
        workload, {r.request_id: alone_s(r, least, cost) for r in workload.requests}
    )
    known = _Known(workload, least, cost, alone.dispatched_s, after_s)

    def part_of_pool(request: Request, steps: int, generated: float) -> float:
        held_tokens = steps * least.requests[request.request_id].held_tokens + generated
        return held_tokens / pool_tokens

    def one_of_running(request: Request, steps: int, generated: float) -> float:
        return steps / max_running_requests

    prefill = _prefill(known)
    decode = max((_decode(known, share) for share in (part_of_pool, one_of_running)), key=_total)
    if separate_forwards:
        for key, work_s in decode.items():
            prefill[key] = prefill.get(key, 0.0) + work_s
    chosen = prefill if separate_forwards else max(prefill, decode, key=_total)
    pieces: dict[str, list[Piece]] = {group: [] for group in workload.applications}
    for (group, head_s, tail_s), work_s in sorted(chosen.items()):
        if work_s > 0:
            pieces[group].append(Piece(head_s, work_s, tail_s))
    return {group: tuple(of) for group, of in pieces.items()}


@dataclass(frozen=True, slots=True)
class _Known:
    workload: Workload
    least: LeastWork
    cost: CostModel
    sent_s: dict[str, float]
    after_s: dict[str, float]
    """From a request's last token to the application's end, at least."""

    def after_prefill_s(self, request: Request) -> float:
        decode = decode_s(request, self.cost, 0, request.output_length - 1)
        return decode + self.after_s[request.request_id]


def _prefill(known: _Known) -> _Pieces:
    workload, cost = known.workload, known.cost
    model = cost.model
    pieces: _Pieces = {}

    def add(group: str, names: tuple[str, ...], flops: float) -> None:
        head_s = min(known.sent_s[name] for name in names)
        tail_s = max(known.after_prefill_s(workload.by_id[name]) for name in names)
        key = group, head_s, tail_s
        pieces[key] = pieces.get(key, 0.0) + flops / cost._flops_per_s

    for group, stretches in known.least.prefill.items():
        for start, length, names in stretches:
            pairs = length * start + length * (length + 1) / 2
            flops = length * model.layer_flops_per_token + pairs * model.attention_flops_per_pair
            add(group, names, flops)
    for request in workload.requests:
        add(request.group, (request.request_id,), model.head_flops)
    return pieces


def _decode(known: _Known, share: Callable[[Request, int, float], float]) -> _Pieces:
    """Args: ``share``: of the fixed costs of so many steps, which hold so many generated tokens."""
    model, bytes_per_s = known.cost.model, known.cost._bytes_per_s
    fixed_s = model.weight_bytes_read(1) / bytes_per_s + known.cost.hardware.step_overhead_s
    pieces: _Pieces = {}
    for request in known.workload.requests:
        name, all_steps = request.request_id, request.output_length - 1
        begin_s = known.sent_s[name] + prefill_s(request, known.least, known.cost)
        for first in range(0, all_steps, DECODE_STEPS):
            end = min(first + DECODE_STEPS, all_steps)
            steps = end - first
            # Step k holds k + 1 tokens beside the prompt.
            generated = (end * (end + 1) - first * (first + 1)) / 2
            kv_tokens = steps * request.prompt_length + generated
            traffic_s = kv_tokens * model.kv_bytes_per_token / bytes_per_s
            head_s = begin_s + decode_s(request, known.cost, 0, first)
            tail_s = decode_s(request, known.cost, end, all_steps) + known.after_s[name]
            key = request.group, head_s, tail_s
            work_s = traffic_s + fixed_s * share(request, steps, generated)
            pieces[key] = pieces.get(key, 0.0) + work_s
    return pieces


def _total(pieces: _Pieces) -> float:
    return sum(pieces.values())
