"""Below the host tier: what it drops of agents in a gap is read back before they return.

SGLang writes what has reached the host tier to its storage backend, and asks the backend again when
a request arrives. Here the same is asked ahead of the predicted return, through SGLang's own
prefetch, so that the upload finds a host copy. Storage is asked by token ids, and SGLang forgets
those with the node: they are kept for agents in a gap, from the moment a node of theirs goes.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle
from sglang.srt.mem_cache.radix_cache import RadixKey

from tokencake_sglang.agents.alarms import Alarms
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.engine.cache import TokencakeCache
from tokencake_sglang.engine.residents import Resident
from tokencake_sglang.observability.decisions import Action, DecisionLog

if TYPE_CHECKING:
    from sglang.srt.managers.cache_controller import PrefetchOperation
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

FIRST_GUESS_BYTES_PER_S = 1e9
"""How fast storage is read, until a fetch has shown it."""

MARGIN = 2.0
"""A fetch starts so many times earlier than it should take: too early costs host memory only."""

FETCHES_PER_GAP = 2
"""A host tier too small for two agents must not read them from storage in turns for ever."""

FETCH_RETRY_S = 0.1
"""After SGLang has refused a fetch because too much is being read already."""

REMEMBERED_TOKENS = 1 << 24
"""Token ids kept in all, of four bytes each; the agents whose KV was dropped first are given up."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One node that went, shared by the agents whose path it ended."""

    token_ids: array
    extra_key: str | None
    cache_salt: str | None


@dataclass(slots=True)
class _Tail:
    """What the tree no longer has of an agent's path: from below its leaf, root first."""

    pieces: list[_Piece]

    def __len__(self) -> int:
        return sum(len(piece.token_ids) for piece in self.pieces)

    def key(self) -> RadixKey:
        token_ids = array("q")
        for piece in self.pieces:
            token_ids.extend(array("q", piece.token_ids))
        return RadixKey(token_ids, self.pieces[0].extra_key, cache_salt=self.pieces[0].cache_salt)

    def cut(self, tokens: int) -> None:
        """Without its first ``tokens``."""
        while tokens > 0:
            first = self.pieces[0]
            if len(first.token_ids) > tokens:
                rest = first.token_ids[tokens:]
                self.pieces[0] = _Piece(rest, first.extra_key, first.cache_salt)
                return
            tokens -= len(first.token_ids)
            del self.pieces[0]


@dataclass(frozen=True, slots=True)
class _Fetch:
    """A read from storage into the host tier that SGLang is making for us."""

    resident: Resident
    handle: CacheRequestHandle
    operation: "PrefetchOperation"
    tokens: int
    started_s: float


class StorageFetches:
    """What agents in a gap have in storage only, and its way back to the host.

    Does nothing while SGLang has no storage backend. What has been read, and how much, is what
    SGLang's ranks have agreed on, so every rank decides alike.

    Args:
        retarget: makes another node the end of a resident's path in the tree.
    """

    def __init__(
        self,
        cache: TokencakeCache,
        residents: Mapping[AgentKey, Resident],
        agents_by_leaf: Mapping[int, tuple[AgentKey, ...]],
        log: DecisionLog,
        retarget: Callable[[Resident, int], None],
        kv_bytes_per_token: int,
    ) -> None:
        self.cache = cache
        self.residents = residents
        self.agents_by_leaf = agents_by_leaf
        self.log = log
        self.retarget = retarget
        self.tokens_per_s = FIRST_GUESS_BYTES_PER_S / kv_bytes_per_token
        self._tails: dict[AgentKey, _Tail] = {}
        self._remembered_tokens = 0
        self._dropped: Counter[AgentKey] = Counter()  # tokens since the last step
        self._starts: Alarms[AgentKey] = Alarms()  # when a fetch must start
        self._fetches: dict[AgentKey, _Fetch] = {}
        self._tries: Counter[AgentKey] = Counter()  # in this gap
        self._planned = False  # something, since the last step began: it may be due at once
        self._handles = 0

    @property
    def on(self) -> bool:
        return self.cache.enable_storage

    def __contains__(self, key: AgentKey) -> bool:
        """Whether a part of the agent's path may be in storage only."""
        return key in self._tails

    def tail_tokens(self, key: AgentKey) -> int:
        tail = self._tails.get(key)
        return 0 if tail is None else len(tail)

    # -- what the tree loses ------------------------------------------------------------------

    def removed(self, node: "UnifiedTreeNode") -> None:
        """SGLang is about to take the node, which has no children, out of the tree."""
        keys = [
            key
            for key in self.agents_by_leaf.get(node.id, ())
            if self.residents[key].expected is not None
        ]
        if not keys:
            return
        # Four bytes a token, where SGLang's own keys have eight.
        token_ids = array("i", node.key.raw_token_ids())
        piece = _Piece(token_ids, node.key.extra_key, node.key.cache_salt)
        for key in keys:
            tail = self._tails.setdefault(key, _Tail([]))
            tail.pieces.insert(0, piece)
            self._remembered_tokens += len(token_ids)
            self._dropped[key] += len(token_ids)
            self.retarget(self.residents[key], node.parent.id)
        while self._remembered_tokens > REMEMBERED_TOKENS:
            self._forget(next(iter(self._tails)))

    def _forget(self, key: AgentKey) -> None:
        if (tail := self._tails.pop(key, None)) is not None:
            self._remembered_tokens -= len(tail)
        self._starts.cancel(key)

    def _rejoin(self, resident: Resident) -> int:
        """Moves the end of the agent's path down to what of its tail is in the tree. Returns tokens."""
        key = resident.agent.key
        tail = self._tails.get(key)
        if tail is None:
            return 0
        leaf_id, tokens = self.cache.descend(resident.leaf_id, tail.key())
        if tokens:
            self.retarget(resident, leaf_id)
            tail.cut(tokens)
            self._remembered_tokens -= tokens
            if not tail.pieces:
                self._forget(key)
        return tokens

    # -- fetches ------------------------------------------------------------------------------

    def plan(self, resident: Resident, upload_start_s: float) -> None:
        """The upload of everything below the device is to start then."""
        key = resident.agent.key
        tokens = self.tail_tokens(key)
        self._starts.cancel(key)
        self._planned = True
        if (
            tokens >= max(1, self.cache.prefetch_threshold)
            and key not in self._fetches
            and self._tries[key] < FETCHES_PER_GAP
        ):
            self._starts.set(key, upload_start_s - MARGIN * tokens / self.tokens_per_s)

    @property
    def under_way(self) -> bool:
        """Whether a fetch is, or anything was planned or has left the host since the last step."""
        return self._planned or bool(self._fetches or self._dropped)

    def step(self, now_s: float, step_gap_s: float) -> Iterable[Resident]:
        """Starts and ends fetches. Returns the residents whose way back is to be planned anew."""
        self._planned = False
        if not (self._dropped or self._fetches or self._starts):
            return ()
        changed: dict[AgentKey, Resident] = {}
        for key, tokens in self._dropped.items():
            if (resident := self.residents.get(key)) is not None:
                self.log.record(now_s, key, Action.DROP, "host_full", tokens)
                changed[key] = resident
        self._dropped.clear()
        for key, fetch in list(self._fetches.items()):
            if not self.cache.has_ongoing_prefetch(fetch.handle):
                self._finish(fetch, now_s)
                changed[key] = fetch.resident
        for key in self._starts.pop_due(now_s + step_gap_s):
            resident = self.residents[key]
            if self._rejoin(resident):  # somebody else has brought it back
                changed[key] = resident
            if key in self._tails:
                self._start(resident, now_s)
        return changed.values()

    def _start(self, resident: Resident, now_s: float) -> None:
        agent, tail = resident.agent, self._tails[resident.agent.key]
        anchor_id = resident.leaf_id
        if not (self.cache.is_root(anchor_id) or self.cache.is_backuped(anchor_id)):
            # What hangs below a node without a host copy, SGLang's insert_host drops again.
            self.log.record(now_s, agent.key, Action.FETCH, "prefix_not_copied", len(tail))
            self._forget(agent.key)
            return
        self._handles += 1
        handle = CacheRequestHandle(f"tokencake-fetch-{self._handles}", 0)
        key = tail.key()
        self.cache.prefetch_from_storage(
            handle,
            anchor_id,
            key.token_ids,
            self.cache.get_last_hash_value(anchor_id),
            self._prefix_keys(anchor_id),
            extra_key=key.extra_key,
            cache_salt=key.cache_salt,
        )
        info = self.cache.ongoing_prefetch.get(handle)
        if info is None:
            self.cache.storage_prefetch_retries.cancel(handle.rid)
            self.log.count(Action.FETCH, "rate_limited")
            self._starts.set(agent.key, now_s + FETCH_RETRY_S)
            return
        self._tries[agent.key] += 1
        self._fetches[agent.key] = _Fetch(resident, handle, info.operation, len(tail), now_s)
        reason = "return_predicted" if agent.calls else "call_finished"
        self.log.record(
            now_s,
            agent.key,
            Action.FETCH,
            reason,
            len(tail),
            expected_return_s=resident.return_s,
        )

    def _prefix_keys(self, anchor_id: int) -> list[str] | None:
        if not self.cache.hicache_storage_pass_prefix_keys:
            return None
        return self.cache.get_prefix_hash_values(anchor_id)

    def _finish(self, fetch: _Fetch, now_s: float, *, cut_short: bool = False) -> None:
        key = fetch.resident.agent.key
        del self._fetches[key]
        # As admission does for a request: SGLang keeps account of each handle until then.
        read = self.cache.pop_prefetch_loaded_tokens(fetch.handle)
        self.cache.finish_storage_prefetch_admission(fetch.handle, read, None)
        self.cache.storage_prefetch_retries.cancel(fetch.handle.rid)
        tokens = self._rejoin(fetch.resident)
        if fetch.resident.gap is not None:
            fetch.resident.gap.fetched_tokens += tokens
        if cut_short:
            reason = "cut_short"
        elif tokens or read:
            reason = "fetched"
        elif fetch.operation.storage_hit_count < self.cache.prefetch_threshold:
            reason = "not_stored"
        else:
            reason = "host_full" if fetch.operation.host_indices is None else "read_failed"
        self.log.record(now_s, key, Action.FETCH, reason, tokens, took_s=now_s - fetch.started_s)
        if reason == "not_stored":
            self._forget(key)
        if reason == "fetched" and tokens and now_s > fetch.started_s:
            measured = tokens / (now_s - fetch.started_s)
            self.tokens_per_s = (self.tokens_per_s + measured) / 2

    # -- the end of a gap ---------------------------------------------------------------------

    def gap_over(self, resident: Resident, now_s: float) -> None:
        """The agent's request is here, or nobody expects it any more.

        What has been read so far goes into the tree, so that SGLang's own prefetch, which begins
        when the request arrives, asks for the rest only.
        """
        key = resident.agent.key
        if key not in self._tails and key not in self._tries:
            return
        self._end_fetch(key, now_s)
        if resident.gap is not None:
            resident.gap.missing_tokens = self.tail_tokens(key)
        self._forget(key)
        self._dropped.pop(key, None)
        self._tries.pop(key, None)

    def path_renewed(self, resident: Resident, now_s: float) -> None:
        """A turn has ended whose call was announced before: what went was of the path before it."""
        if resident.agent.key in self._tails:
            self._end_fetch(resident.agent.key, now_s)
            self._forget(resident.agent.key)

    def _end_fetch(self, key: AgentKey, now_s: float) -> None:
        if (fetch := self._fetches.get(key)) is not None:
            self.cache.end_prefetch(fetch.handle)
            self._finish(fetch, now_s, cut_short=True)

    def clear(self) -> None:
        """The tree was reset, and SGLang's fetches with it."""
        self._tails.clear()
        self._remembered_tokens = 0
        self._starts.clear()
        for state in (self._dropped, self._fetches, self._tries):
            state.clear()

    def snapshot(self) -> dict[str, int]:
        return {"in_storage_only": len(self._tails), "fetching": len(self._fetches)}
