"""What tenants get of a server that they share."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tokencake_sglang.replay.occupancy import Extent, is_idle, running_requests
from tokencake_sglang.replay.quantiles import Spread, SpreadAndMax, spread, spread_and_max
from tokencake_sglang.replay.workload import Workload
from tokencake_sglang.timewarp.engine import TimeWarp

if TYPE_CHECKING:
    from tokencake_sglang.replay.driver import Replay


@dataclass(frozen=True, slots=True)
class Holding:
    """Device tokens of each tenant's running requests at ``time_s``, what several of one tenant
    share once; and the tenants that had something queued or running."""

    time_s: float
    tokens: dict[str, int]
    busy: frozenset[str]


class Contended(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's part while all of them had something queued or running.

    ``share``: of the token-seconds that all tenants' running requests held together. ``pool_mean``
    and ``pool_most``: parts of the pool that its own held, in the time-weighted mean and at most.
    """

    share: float
    pool_mean: float
    pool_most: float


class TenantFigures(msgspec.Struct, frozen=True, kw_only=True):
    """``end_to_end_s`` is per application, ``first_token_s`` from queued to the first token of all
    its requests. ``ended_s``: when the last of its applications was over."""

    applications: int
    end_to_end_s: SpreadAndMax
    first_token_s: Spread
    ended_s: float
    contended: Contended


class Tenants(msgspec.Struct, frozen=True, kw_only=True):
    """``contended_s``: for how long all tenants had something queued or running at once."""

    contended_s: float
    of: dict[str, TenantFigures]


class Holdings:
    """Samples what each tenant's running requests hold; changes nothing.

    Args:
        interval_s: virtual seconds between samples. One is taken at the first turn of the scheduler
            at or after each multiple, so a long step leaves some out, and when the scheduler
            falls idle, which may last longer.
    """

    def __init__(self, workload: Workload, warp: TimeWarp, *, interval_s: float = 1.0) -> None:
        self.interval_s = interval_s
        self.samples: list[Holding] = []
        self.pool_tokens: int = warp.scheduler.token_to_kv_pool_allocator.available_size()
        self._tenant_of = {
            request.request_id: request.tenant
            for request in workload.requests
            if request.tenant is not None
        }
        self.tenants = sorted(set(self._tenant_of.values()))
        self._next_s = 0.0
        self._idle = False
        warp.observers.append(self.observe)

    def observe(self, warp: TimeWarp) -> None:
        now_s = warp.clock.now_s
        was_idle = self._idle
        self._idle = is_idle(warp.scheduler)
        if now_s < self._next_s and (was_idle or not self._idle):
            return
        self._next_s = (now_s // self.interval_s + 1) * self.interval_s
        busy = {
            self._tenant_of[rid]
            for rid, request in warp.requests.items()
            if request.finished_s is None and rid in self._tenant_of
        }
        self.samples.append(Holding(now_s, self._tokens(warp), frozenset(busy)))

    def _tokens(self, warp: TimeWarp) -> dict[str, int]:
        reqs = {
            rid: req
            for rid, req in running_requests(warp.scheduler).items()
            if rid in self._tenant_of
        }
        core = warp.scheduler.tree_cache.tree_core
        paths = core.collect_path_info([req.lock.node for req in reqs.values()])
        shared = {tenant: Extent() for tenant in self.tenants}
        tokens = dict.fromkeys(shared, 0)
        for (rid, req), path in zip(reqs.items(), paths, strict=True):
            tenant = self._tenant_of[rid]
            shared[tenant].add(path, self.pool_tokens)
            in_tree = path[-1].path_end if path else 0
            tokens[tenant] += max(0, req.kv.kv_allocated_len - in_tree)
        return {tenant: tokens[tenant] + extent.tokens for tenant, extent in shared.items()}


def contended(
    samples: Iterable[Holding], tenants: Iterable[str], pool_tokens: int, end_s: float
) -> tuple[float, dict[str, Contended]]:
    """For how long all tenants were busy at once, in seconds, and what each held in that time.

    Args:
        samples: in order of time; each holds until the next one's, the last until ``end_s``.
    """
    known, names = list(samples), list(tenants)
    times = [sample.time_s for sample in known[1:]] + [end_s]
    total_s = 0.0
    held = dict.fromkeys(names, 0.0)
    most = dict.fromkeys(names, 0)
    for sample, until_s in zip(known, times, strict=True):
        if not sample.busy.issuperset(names):
            continue
        weight_s = until_s - sample.time_s
        total_s += weight_s
        for name in names:
            held[name] += weight_s * sample.tokens[name]
            most[name] = max(most[name], sample.tokens[name])
    whole = sum(held.values())
    return total_s, {
        name: Contended(
            share=held[name] / whole if whole else 0.0,
            pool_mean=held[name] / (total_s * pool_tokens) if total_s else 0.0,
            pool_most=most[name] / pool_tokens,
        )
        for name in names
    }


def tenant_figures(replay: "Replay", holdings: Holdings) -> Tenants:
    """Of a run that has ended. Applications that name no tenant are in none."""
    loop, warp, workload = replay.loop, replay.warp, replay.workload
    total_s, parts = contended(
        holdings.samples, holdings.tenants, holdings.pool_tokens, warp.clock.now_s
    )
    found = {}
    for tenant, part in parts.items():
        own = [request for request in workload.requests if request.tenant == tenant]
        applications = dict.fromkeys(request.group for request in own)
        requests = [warp.requests[request.request_id] for request in own]
        found[tenant] = TenantFigures(
            applications=len(applications),
            end_to_end_s=spread_and_max(
                loop.ended_s[name] - loop.started_s[name] for name in applications
            ),
            first_token_s=spread(
                r.first_token_s - r.queued_s for r in requests if r.first_token_s is not None
            ),
            ended_s=max(loop.ended_s[name] for name in applications),
            contended=part,
        )
    return Tenants(contended_s=total_s, of=found)
