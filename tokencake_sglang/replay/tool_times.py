"""Tool times and what callers declare of them: knobs over any workload.

A draw depends on the seed and the request's id only, not on the order of requests, and is rounded
to a microsecond, so that no machine's mathematical library shows.
"""

import math
import random
from collections.abc import Callable, Mapping
from statistics import NormalDist

import msgspec

from tokencake_sglang.replay.workload import Request, Workload

_NORMAL = NormalDist()


def with_noise(workload: Workload, seed: int, scale: float) -> Workload:
    """Multiplies every tool's time with 1 + N(0, ``scale``), never below zero.

    The knob of TokenCake's repository (a gaussian scale on tool time). ``declared_s`` stays: the
    caller still predicts what it predicted.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale: expected a finite number of at least 0, got {scale}")
    return _redrawn(
        workload,
        seed,
        lambda mean_s, share: mean_s * (1 + scale * _NORMAL.inv_cdf(share)),
        {"tool_noise": scale, "tool_seed": seed},
    )


def with_poisson_tools(workload: Workload, seed: int) -> Workload:
    """Draws every tool's time from the exponential distribution with its time as the mean.

    TokenCake's paper (v2, section 7) says of its simulated tools only that their latency is
    Poisson; taken here as the waiting time of a Poisson process. ``declared_s`` stays.
    """
    return _redrawn(
        workload,
        seed,
        lambda mean_s, share: -mean_s * math.log(share),
        {"tool_times": "poisson", "tool_seed": seed},
    )


def with_exact_hints(workload: Workload) -> Workload:
    """Declares every call's true time beforehand, in place of what the caller said, if anything.

    Calls that end with other requests (``until``) stay: how long those take, the server decides.
    """

    def change(request: Request) -> Request:
        call = request.call
        if call is None or call.until:
            return request
        exact = msgspec.structs.replace(call, declared_s=call.wait_s)
        return msgspec.structs.replace(request, call=exact)

    return workload.map(change, {"hints": "exact"})


def _redrawn(
    workload: Workload,
    seed: int,
    draw: Callable[[float, float], float],
    options: Mapping[str, int | float | str],
) -> Workload:
    """``draw(mean_s, share)`` gives seconds for a share drawn evenly from (0, 1)."""

    def change(request: Request) -> Request:
        call = request.call
        if call is None:
            return request
        share = random.Random(f"{seed}/{request.request_id}").random() or 0.5
        wait_s = max(round(draw(call.wait_s, share), 6), 0.0)
        return msgspec.structs.replace(request, call=msgspec.structs.replace(call, wait_s=wait_s))

    return workload.map(change, options)
