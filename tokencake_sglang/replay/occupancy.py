"""What the device's KV pool is filled with, over virtual time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tokencake_sglang.replay.claims import Claim, Claims
from tokencake_sglang.replay.tokens import expand
from tokencake_sglang.replay.workload import Workload
from tokencake_sglang.timewarp.engine import VOCABULARY, TimeWarp


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens of the pool by state at ``time_s``; each token is counted once, in the first state
    that fits, and the five add up to the pool.

    ``running``: held by requests that are being prefilled or decoded. ``soon``: cached, and
    wanted by a request that is queued or is sent within ``claims.SOON_S``. ``idle``: cached, and
    wanted later by an unfinished application. ``dead``: cached, and claimed by nobody (claims.py
    says who claims). ``free``: nobody's.
    """

    time_s: float
    running: int
    soon: int
    idle: int
    dead: int
    free: int


class PoolShares(msgspec.Struct, frozen=True, kw_only=True):
    """Time-weighted mean shares of the pool. ``used`` is all but free; ``effective`` is running
    and soon; what is used is effective, idle or dead."""

    used: float
    effective: float
    idle: float
    dead: float


class Occupancy:
    """Samples a TimeWarp's pool; changes nothing in it.

    Only ``TimeWarp.cached_prefix`` and the tree's ``collect_path_info`` look into it: neither
    splits a node or marks it as used, on either tree core.

    Args:
        interval_s: virtual seconds between samples. A sample is taken at the first turn of the
            scheduler at or after each multiple, so a long step leaves some out, and when the
            scheduler falls idle, which may last longer.
    """

    def __init__(self, workload: Workload, warp: TimeWarp, *, interval_s: float = 1.0) -> None:
        if interval_s <= 0:
            raise ValueError(f"interval_s: expected more than 0 seconds, got {interval_s}")
        self.interval_s = interval_s
        self.samples: list[Sample] = []
        """The series for a plot: each holds from its time to the next one's."""
        self._warp = warp
        self._by_id = workload.by_id
        self._claims = Claims(workload, warp.requests, self._finished_s)
        self._whole: dict[tuple[str, int], tuple[int, int]] = {}
        """Of the last sample's claims, by request and tokens: those that were all there."""
        self._next_s = 0.0
        self._idle = False
        self.pool_tokens = self._free_tokens()
        """Tokens of an empty pool: what is free before the run."""
        warp.observers.append(self.observe)

    def observe(self, warp: TimeWarp) -> None:
        now_s = warp.clock.now_s
        scheduler = warp.scheduler
        was_idle = self._idle
        self._idle = is_idle(scheduler)
        falls_idle = self._idle and not was_idle
        if now_s < self._next_s and not falls_idle:
            return
        self._next_s = (now_s // self.interval_s + 1) * self.interval_s
        self.samples.append(self._sample(now_s))

    def shares(self, end_s: float) -> PoolShares:
        """Means from the first sample to ``end_s``, each sample weighted by how long it holds."""
        used = effective = idle = dead = 0.0
        times = [sample.time_s for sample in self.samples[1:]] + [end_s]
        weights = [t - s.time_s for s, t in zip(self.samples, times, strict=True)]
        whole = sum(weights) * self.pool_tokens
        if not whole:
            return PoolShares(used=0.0, effective=0.0, idle=0.0, dead=0.0)
        for sample, weight in zip(self.samples, weights, strict=True):
            used += weight * (self.pool_tokens - sample.free)
            effective += weight * (sample.running + sample.soon)
            idle += weight * sample.idle
            dead += weight * sample.dead
        return PoolShares(
            used=used / whole, effective=effective / whole, idle=idle / whole, dead=dead / whole
        )

    def _sample(self, now_s: float) -> Sample:
        tree = self._warp.scheduler.tree_cache
        free = self._free_tokens()
        cached = tree.full_evictable_size() + tree.full_protected_size()
        leaf_of = self._running_leaves()
        claims = list(self._claims.at(now_s, leaf_of))
        matches = [self._match(claim) for claim in claims]
        page_tokens = tree.page_size
        self._whole = {
            (claim.request_id, claim.tokens): match
            for claim, match in zip(claims, matches, strict=True)
            if match[0] == claim.tokens // page_tokens * page_tokens > 0
        }
        running = Extent()
        for path in tree.tree_core.collect_path_info(list(leaf_of.values())):
            running.add(path, self.pool_tokens)
        paths = tree.tree_core.collect_path_info([node_id for _, node_id in matches])
        soon = Extent(running)
        for claim, (tokens, _), path in zip(claims, matches, paths, strict=True):
            soon.add(path, min(tokens, claim.soon_tokens))
        claimed = Extent(soon)
        for (tokens, _), path in zip(matches, paths, strict=True):
            claimed.add(path, tokens)
        return Sample(
            time_s=now_s,
            running=self.pool_tokens - free - cached + running.tokens,
            soon=soon.tokens - running.tokens,
            idle=claimed.tokens - soon.tokens,
            dead=cached - claimed.tokens,
            free=free,
        )

    def _running_leaves(self) -> dict[str, int]:
        """Requests being prefilled or decoded → the node that they have locked."""
        running = running_requests(self._warp.scheduler)
        return {rid: req.lock.node for rid, req in running.items()}

    def _match(self, claim: Claim) -> tuple[int, int]:
        """How many of the claim's tokens are on the device, and the last one's node."""
        whole = self._whole.get((claim.request_id, claim.tokens))
        if whole is not None and self._warp.holds(whole[1]):
            return whole
        request = self._warp.requests.get(claim.request_id)
        if request is None:
            unsent = expand(self._by_id[claim.request_id].prompt, VOCABULARY)
            return self._warp.cached_prefix(unsent, claim.tokens)
        prompt: Any = request.prompt  # an array, as the tree's own keys are
        match = self._warp.cached_prefix(prompt, min(claim.tokens, len(prompt)))
        page_tokens = self._warp.scheduler.tree_cache.page_size
        if claim.tokens <= len(prompt) or match[0] + page_tokens <= len(prompt):
            return match
        return self._warp.cached_prefix(prompt + request.output, claim.tokens)

    def _finished_s(self, request_id: str) -> float | None:
        request = self._warp.requests.get(request_id)
        return None if request is None else request.finished_s

    def _free_tokens(self) -> int:
        return self._warp.scheduler.token_to_kv_pool_allocator.available_size()


def is_idle(scheduler: Any) -> bool:
    """Whether nothing is being prefilled or decoded."""
    return scheduler.last_batch is None and bool(scheduler.running_batch.is_empty())


def running_requests(scheduler: Any) -> dict[str, Any]:
    """SGLang's requests that are being prefilled or decoded, by id; each has locked a node."""
    reqs = list(scheduler.running_batch.reqs)
    if scheduler.last_batch is not None:
        reqs += scheduler.last_batch.reqs  # just prefilled: merged after this
    if scheduler.chunked_req is not None:
        reqs.append(scheduler.chunked_req)
    return {req.rid: req for req in reqs if req.lock is not None}


class Extent:
    """A set of tokens of the radix tree: of each node, how many from its beginning."""

    def __init__(self, base: "Extent | None" = None) -> None:
        self._by_node: dict[int, int] = dict(base._by_node) if base is not None else {}
        self.tokens: int = base.tokens if base is not None else 0

    def add(self, path: Sequence[Any], tokens: int) -> None:
        """Adds the first ``tokens`` of a path from the root, as far as it is on the device."""
        for node in path:
            covered = min(node.path_end, tokens) - node.path_start
            if covered <= 0 or node.full_value_len is None:
                return
            more = covered - self._by_node.get(node.node_id, 0)
            if more > 0:
                self._by_node[node.node_id] = covered
                self.tokens += more
