"""Token sequences as chained hashes of their blocks: what is shared stays visible, the text not.

The hash of a block stands for the block and everything before it, so two sequences have a block's
hash in common exactly when they agree up to its end. Hashes are keyed: without the key, which a
recording does not keep, no guess at the text can be checked.
"""

import hashlib
from array import array
from collections.abc import Iterable

from tokencake_sglang.replay.tokens import Span

DIGEST_BYTES = 8
_TOKEN_BYTES = array("q").itemsize


class Hasher:
    """Makes chains with one key and one block size, in tokens."""

    def __init__(self, block_size: int, key: bytes) -> None:
        self.block_size = block_size
        self._keyed = hashlib.blake2b(key=key, digest_size=DIGEST_BYTES)

    def digest(self, *parts: bytes) -> bytes:
        hasher = self._keyed.copy()
        for part in parts:
            hasher.update(part)
        return hasher.digest()

    def chain(self, namespace: str = "") -> "Chain":
        """An empty sequence. Sequences of different namespaces have no block in common."""
        return Chain(self, self.digest(namespace.encode()))


class Chain:
    """A growing sequence of tokens, of which only hashes and the open block's tokens are kept."""

    __slots__ = ("_hasher", "_open", "_root", "digests", "length")

    def __init__(self, hasher: Hasher, root: bytes) -> None:
        self._hasher = hasher
        self._root = root
        self._open = b""
        self.digests = bytearray()
        """Of all full blocks, one after the other, ``DIGEST_BYTES`` each."""
        self.length = 0
        """Tokens."""

    @property
    def block_size(self) -> int:
        return self._hasher.block_size

    @property
    def blocks(self) -> int:
        """Full blocks."""
        return len(self.digests) // DIGEST_BYTES

    def block(self, index: int) -> bytes:
        """The hash of a full block and all before it."""
        return bytes(self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])

    def extend(self, tokens: Iterable[int]) -> None:
        added = (
            tokens if isinstance(tokens, array) and tokens.typecode == "q" else array("q", tokens)
        )
        self.length += len(added)
        content = self._open + added.tobytes()
        width = self.block_size * _TOKEN_BYTES
        previous = self._last()
        full = len(content) - len(content) % width
        for start in range(0, full, width):
            previous = self._hasher.digest(previous, content[start : start + width])
            self.digests += previous
        self._open = content[full:]

    def spans(self) -> tuple[Span, ...]:
        """A segment for each full block, and one for what comes after the last."""
        size = self.block_size
        spans = [Span(self.block(index).hex(), 0, size) for index in range(self.blocks)]
        if rest := self.length % size:
            # Shorter than any full block, so its hash can be none's.
            name = self._hasher.digest(self._last(), self._open).hex()
            spans.append(Span(name, 0, rest))
        return tuple(spans)

    def _last(self) -> bytes:
        return self.block(self.blocks - 1) if self.digests else self._root
