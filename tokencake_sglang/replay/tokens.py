"""Tokens without text: spans of named segments, and the numbers they expand to.

A segment is an endless row of tokens that only its name decides. A span is a part of it. Two
spans are equal exactly when their tokens are, so prefixes are shared exactly when spans are (up to
chance: two unrelated tokens are equal with probability 1 in the vocabulary's size).
"""

import functools
import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy

FIRST_TOKEN = 3
"""Tokens below are left out: they are what tokenizers use for beginning, end and padding."""

_STEP = numpy.uint64(0x9E3779B97F4A7C15)
_MIX_1 = numpy.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = numpy.uint64(0x94D049BB133111EB)


class Span(NamedTuple):
    """Tokens ``start`` to ``start + length`` of a segment."""

    segment: str
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


def token(segment: str, offset: int, vocab_size: int) -> int:
    """The token of a segment at an offset."""
    return expand([Span(segment, offset, 1)], vocab_size)[0]


def expand(spans: Iterable[Span], vocab_size: int) -> "array[int]":
    """The tokens of spans, one after the other, each in [3, ``vocab_size``), as int64.

    Token i of a segment is splitmix64's output number i for a seed that is the first eight bytes
    of the segment's BLAKE2b, scaled to the vocabulary by its upper 32 bits. That takes integer
    arithmetic only, so it is the same on every machine; 100,000 tokens take about a millisecond.
    """
    if not FIRST_TOKEN < vocab_size <= 2**31:
        raise ValueError(f"vocab_size: expected {FIRST_TOKEN + 1} to 2**31, got {vocab_size}")
    tokens = array("q")
    for segment, start, length in spans:
        # Counted from one: splitmix64 adds its step before the first output.
        bits: numpy.ndarray = numpy.arange(start + 1, start + length + 1, dtype=numpy.uint64)
        bits *= _STEP
        bits += _seed(segment)
        bits ^= bits >> numpy.uint64(30)
        bits *= _MIX_1
        bits ^= bits >> numpy.uint64(27)
        bits *= _MIX_2
        bits ^= bits >> numpy.uint64(31)
        bits >>= numpy.uint64(32)
        bits *= numpy.uint64(vocab_size - FIRST_TOKEN)
        bits >>= numpy.uint64(32)
        bits += numpy.uint64(FIRST_TOKEN)
        tokens.frombytes(bits.astype(numpy.int64).tobytes())
    return tokens


@functools.lru_cache(maxsize=65_536)
def _seed(segment: str) -> numpy.uint64:
    digest = hashlib.blake2b(segment.encode(), digest_size=8).digest()
    return numpy.uint64(int.from_bytes(digest, "little"))


def length(spans: Iterable[Span]) -> int:
    """Tokens."""
    return sum(span.length for span in spans)


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same tokens in as few spans as possible: empty ones dropped, neighbours merged."""
    result: list[Span] = []
    for span in spans:
        if not span.length:
            continue
        if result and result[-1].segment == span.segment and result[-1].end == span.start:
            result[-1] = result[-1]._replace(length=result[-1].length + span.length)
        else:
            result.append(span)
    return tuple(result)


def cut(spans: Sequence[Span], start: int, end: int | None = None) -> tuple[Span, ...]:
    """The tokens from position ``start`` up to ``end``, as ``sequence[start:end]`` would."""
    result: list[Span] = []
    position = 0
    for span in spans:
        first = max(start - position, 0)
        last = span.length if end is None else min(end - position, span.length)
        if first < last:
            result.append(Span(span.segment, span.start + first, last - first))
        position += span.length
    return tuple(result)


def common_prefix(first: Sequence[Span], second: Sequence[Span]) -> int:
    """How many tokens the two begin with in common."""
    total = i = j = used_i = used_j = 0
    while i < len(first) and j < len(second):
        a, b = first[i], second[j]
        if a.segment != b.segment or a.start + used_i != b.start + used_j:
            break
        step = min(a.length - used_i, b.length - used_j)
        total, used_i, used_j = total + step, used_i + step, used_j + step
        if used_i == a.length:
            i, used_i = i + 1, 0
        if used_j == b.length:
            j, used_j = j + 1, 0
    return total
