"""What a run is judged by; virtual time only, so the same run gives the same figures."""

from collections.abc import Iterable
from typing import Any

import msgspec

from tokencake_sglang.replay.critical_path import critical_paths_s
from tokencake_sglang.replay.driver import Replay
from tokencake_sglang.replay.fairness import Fairness, fairness
from tokencake_sglang.replay.occupancy import PoolShares
from tokencake_sglang.replay.prefix_tree import least_prefill
from tokencake_sglang.replay.quantiles import Spread, SpreadAndMax, spread, spread_and_max
from tokencake_sglang.replay.tenants import Tenants, tenant_figures
from tokencake_sglang.timewarp.engine import Request, TimeWarp


class FirstToken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Seconds from queued to the first token, of requests that wait for others of their application
    and of the rest.

    Untagged requests beside applications count as ``untagged`` alone.
    """

    first: Spread
    returning: Spread
    untagged: Spread | None = None


class PrefillTokens(msgspec.Struct, frozen=True, kw_only=True):
    """``needed``: what a cache that forgets nothing computes for the order of dispatch, shared to
    the token. ``wasted`` is the rest: evicted and computed again, computed twice at once, and the
    part of a page, up to a page each request, that no cache of whole pages can share."""

    computed: int
    needed: int
    wasted: int


class Hits(msgspec.Struct, frozen=True, kw_only=True):
    """Where prompt tokens were found at a request's first admission. Without retractions the
    prompt is the sum of the others."""

    prompt_tokens: int
    device_tokens: int
    host_tokens: int
    computed_tokens: int


class Transfers(msgspec.Struct, frozen=True, kw_only=True):
    """Copies between device and host; all 0 without a host tier. A load is late if a forward
    waited for it; ``exposed_wait_s`` is how long they waited."""

    to_device_bytes: int = 0
    to_host_bytes: int = 0
    to_device_late_bytes: int = 0
    to_device_on_time_bytes: int = 0
    exposed_wait_s: float = 0.0
    to_device_busy_s: float = 0.0
    to_host_busy_s: float = 0.0


class Figures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run. ``end_to_end_s`` is per application, from its first dispatch until its last
    request and call are over; an untagged request is an application of its own. ``queueing_s`` is
    from queued to admitted. Quantiles by ``quantiles.quantile``. ``preemptions`` are not among
    the ``retractions``. ``decisions``: the extension's, by action and reason. ``tenants`` only of a
    workload that names some."""

    applications: int
    requests: int
    steps: int
    output_tokens: int
    end_to_end_s: SpreadAndMax
    makespan_s: float
    first_token_s: FirstToken
    queueing_s: Spread
    prefill_tokens: PrefillTokens
    hits: Hits
    transfers: Transfers
    retractions: int
    preemptions: int
    kv: PoolShares
    fairness: Fairness
    decisions: dict[str, int]
    application_s: dict[str, float]
    tenants: Tenants | None = None


class CriticalFirstToken(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from queued to the first token of returning turns: of critical agents, and of others.

    An application's first turn counts in neither: it waits to enter the working set, and who sends
    it is not what that depends on.
    """

    critical: Spread
    others: Spread


def figures(replay: Replay) -> dict[str, Any]:
    """``measured`` as JSON has it: for files, tables and comparisons."""
    builtins: dict[str, Any] = msgspec.to_builtins(measured(replay))
    return builtins


def measured(replay: Replay) -> Figures:
    """What a run that has ended is judged by."""
    loop, warp, workload = replay.loop, replay.warp, replay.workload
    requests = list(warp.requests.values())
    application_s = {
        name: loop.ended_s[name] - loop.started_s[name] for name in workload.applications
    }
    needed, _ = least_prefill(workload.by_id[request.rid] for request in requests)
    computed = warp.totals.prefill_tokens
    preemptions = replay.preemptions.requests
    return Figures(
        applications=len(application_s),
        requests=len(requests),
        steps=warp.totals.steps,
        output_tokens=warp.totals.output_tokens,
        end_to_end_s=spread_and_max(application_s.values()),
        makespan_s=max(loop.ended_s.values(), default=0.0),
        first_token_s=_first_tokens(replay),
        queueing_s=spread(r.admitted_s - r.queued_s for r in requests if r.admitted_s is not None),
        prefill_tokens=PrefillTokens(computed=computed, needed=needed, wasted=computed - needed),
        hits=Hits(
            prompt_tokens=sum(len(r.prompt) for r in requests),
            device_tokens=sum(r.device_hit_tokens for r in requests),
            host_tokens=sum(r.host_hit_tokens for r in requests),
            computed_tokens=computed,
        ),
        transfers=_transfers(warp),
        retractions=warp.totals.retractions - preemptions,
        preemptions=preemptions,
        kv=replay.occupancy.shares(warp.clock.now_s),
        fairness=fairness(application_s, critical_paths_s(workload, warp.cost)),
        decisions=dict(sorted(replay.decisions.items())),
        application_s=application_s,
        tenants=None if replay.holdings is None else tenant_figures(replay, replay.holdings),
    )


def critical_first_tokens(replay: Replay) -> CriticalFirstToken:
    """Of a run that has ended, by what its requests' tags say."""
    by_id = replay.workload.by_id
    returning = [r for r in replay.warp.requests.values() if r.rid in replay.returning]
    return CriticalFirstToken(
        critical=_first_token(r for r in returning if by_id[r.rid].critical),
        others=_first_token(r for r in returning if not by_id[r.rid].critical),
    )


def _first_tokens(replay: Replay) -> FirstToken:
    workload, requests = replay.workload, list(replay.warp.requests.values())
    untagged = [r for r in requests if workload.by_id[r.rid].application is None]
    beside = untagged if len(untagged) < len(requests) else []
    apart = {request.rid for request in beside}
    return FirstToken(
        first=_first_token(
            r for r in requests if r.rid not in replay.returning and r.rid not in apart
        ),
        returning=_first_token(r for r in requests if r.rid in replay.returning),
        untagged=_first_token(beside) if beside else None,
    )


def _first_token(requests: Iterable[Request]) -> Spread:
    return spread(r.first_token_s - r.queued_s for r in requests if r.first_token_s is not None)


def _transfers(warp: TimeWarp) -> Transfers:
    transfers = warp.transfers
    if transfers is None:
        return Transfers()
    token_bytes = warp.cost.model.kv_bytes_per_token
    loaded = token_bytes * sum(load.tokens for load in transfers.loads)
    late = token_bytes * sum(load.tokens for load in transfers.loads if load.late)
    return Transfers(
        to_device_bytes=loaded,
        to_host_bytes=token_bytes * sum(backup.tokens for backup in transfers.backups),
        to_device_late_bytes=late,
        to_device_on_time_bytes=loaded - late,
        exposed_wait_s=sum(load.exposed_s for load in transfers.loads),
        to_device_busy_s=transfers.host_to_device_stream.busy_s,
        to_host_busy_s=transfers.device_to_host_stream.busy_s,
    )
