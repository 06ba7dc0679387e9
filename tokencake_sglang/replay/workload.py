"""The replay format: what a request is, what makes a workload valid, reading and writing.

FORMAT.md says what every field means. Nothing but an application's first requests has an absolute
time: whatever follows is dispatched when its predecessors are done (closed_loop.py).
"""

import functools
import gzip
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, TypeVar

import msgspec

from tokencake_sglang.replay import tokens
from tokencake_sglang.replay.tokens import Span

VERSION = 1


class ReplayError(ValueError):
    """A workload or a replay file that cannot be replayed, and why."""


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line of a replay file."""

    format: Literal["tokencake-replay"] = "tokencake-replay"
    version: int = VERSION
    name: str
    source: str
    licence: str
    block_size: int | None = None
    options: dict[str, int | float | str] = {}


class ToolCall(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The call in which an agent stops when its request ends.

    It returns ``wait_s`` after the request, and all that ``until`` names, have ended.
    """

    tool: str
    wait_s: float
    declared_s: float | None = None
    until: tuple[str, ...] = ()


class Request(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One LLM request: who sends it, what it waits for, its prompt and the output it will have."""

    request_id: str
    application: str | None = None
    agent: str | None = None
    agent_type: str = "default"
    critical: bool = False
    tenant: str | None = None
    arrival_s: float | None = None
    wait_for: tuple[str, ...] = ()
    spawned_by: str | None = None
    delay_s: float = 0.0
    prompt: tuple[Span, ...]
    output: tuple[Span, ...]
    call: ToolCall | None = None

    @property
    def is_root(self) -> bool:
        return not self.wait_for and self.spawned_by is None

    @property
    def group(self) -> str:
        """The application; an untagged request is one of its own."""
        return self.application if self.application is not None else self.request_id

    @property
    def prompt_length(self) -> int:
        return tokens.length(self.prompt)

    @property
    def output_length(self) -> int:
        return tokens.length(self.output)

    @property
    def names(self) -> Iterator[str]:
        """Every other request that this one names."""
        yield from self.wait_for
        if self.spawned_by is not None:
            yield self.spawned_by
        if self.call is not None:
            yield from self.call.until


class Workload:
    """A header and the requests in file order, validated. Never changed: variants are new ones.

    Raises:
        ReplayError: on construction, naming the request, the field and what would be accepted.
    """

    def __init__(self, header: Header, requests: Iterable[Request]) -> None:
        self.header = header
        self.requests = tuple(requests)
        _check(header, self.requests)

    @property
    def name(self) -> str:
        return self.header.name

    @functools.cached_property
    def by_id(self) -> Mapping[str, Request]:
        return {request.request_id: request for request in self.requests}

    @functools.cached_property
    def applications(self) -> Mapping[str, tuple[Request, ...]]:
        """Requests by application, both in file order; an untagged request stands alone."""
        groups: dict[str, list[Request]] = {}
        for request in self.requests:
            groups.setdefault(request.group, []).append(request)
        return {name: tuple(requests) for name, requests in groups.items()}

    @functools.cached_property
    def prompt_tokens(self) -> int:
        return sum(request.prompt_length for request in self.requests)

    @functools.cached_property
    def output_tokens(self) -> int:
        return sum(request.output_length for request in self.requests)

    def map(
        self, change: Callable[[Request], Request], options: Mapping[str, int | float | str]
    ) -> "Workload":
        """A workload of the changed requests; ``options`` go into its header."""
        header = msgspec.structs.replace(self.header, options={**self.header.options, **options})
        return Workload(header, (change(request) for request in self.requests))


def _check(header: Header, requests: tuple[Request, ...]) -> None:
    if header.version != VERSION:
        raise ReplayError(f"version: this reader understands {VERSION}, got {header.version}")
    if header.block_size is not None and header.block_size < 1:
        raise ReplayError(f"block_size: expected at least 1 or null, got {header.block_size}")
    known = Counter(request.request_id for request in requests)
    for request in requests:
        where = f"request {request.request_id!r}"
        if known[request.request_id] > 1:
            raise ReplayError(f"{where}: request_id is used {known[request.request_id]} times")
        for problem in _problems(request):
            raise ReplayError(f"{where}: {problem}")
        for name in request.names:
            if name not in known:
                raise ReplayError(f"{where}: waits for {name!r}, which is not in the workload")
    circle = _circle(requests)
    if circle:
        raise ReplayError(f"these requests wait for each other: {', '.join(sorted(circle)[:10])}")


def _problems(request: Request) -> Iterator[str]:
    if (request.application is None) != (request.agent is None):
        yield "application and agent: expected both, or neither for untagged traffic"
    if request.tenant is not None and (request.agent is None or not request.tenant):
        yield f"tenant: expected a name beside an agent's, or null, got {request.tenant!r}"
    if request.is_root and request.arrival_s is None:
        yield "arrival_s: expected seconds, for it waits for nothing"
    if not request.is_root and request.arrival_s is not None:
        yield f"arrival_s: expected null, for it waits for others; got {request.arrival_s}"
    seconds = {"arrival_s": request.arrival_s, "delay_s": request.delay_s}
    if request.call is not None:
        seconds["call.wait_s"] = request.call.wait_s
        seconds["call.declared_s"] = request.call.declared_s
        if not request.call.tool:
            yield "call.tool: expected a name, got an empty one"
    for field, value in seconds.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            yield f"{field}: expected finite seconds of at least 0, got {value}"
    for field, spans in (("prompt", request.prompt), ("output", request.output)):
        if not spans:
            yield f"{field}: expected at least one span"
        for span in spans:
            if span.start < 0 or span.length < 1:
                yield (
                    f"{field}: expected spans with start of at least 0 and length of at least 1, "
                    f"got {list(span)}"
                )
    if len(set(request.wait_for)) != len(request.wait_for):
        yield "wait_for: expected every request once"


def _circle(requests: tuple[Request, ...]) -> set[str]:
    """Requests that can never be dispatched or never be settled, because they wait for themselves.

    Two points in time a request: its end, and the moment when its call has returned too.
    """
    after: dict[tuple[str, str], list[tuple[str, str]]] = {}
    missing: Counter[tuple[str, str]] = Counter()

    def order(first: tuple[str, str], then: tuple[str, str]) -> None:
        after.setdefault(first, []).append(then)
        missing[then] += 1

    for request in requests:
        end, settled = ("end", request.request_id), ("settled", request.request_id)
        order(end, settled)
        for name in request.wait_for:
            order(("settled", name), end)
        if request.spawned_by is not None:
            order(("end", request.spawned_by), end)
        for name in request.call.until if request.call else ():
            order(("settled", name), settled)
    ready = [("end", request.request_id) for request in requests if request.is_root]
    while ready:
        for then in after.get(ready.pop(), ()):
            missing[then] -= 1
            if not missing[then]:
                ready.append(then)
    return {name for (_, name), count in missing.items() if count > 0}


# Files

_Line = TypeVar("_Line", Header, Request)
_encoder = msgspec.json.Encoder()
_header_decoder = msgspec.json.Decoder(Header)
_request_decoder = msgspec.json.Decoder(Request)


def write(path: Path | str, header: Header, requests: Iterable[Request]) -> int:
    """Writes a replay file request by request, compressed if its name ends in ``.gz``.

    The same requests give the same bytes. Nothing is checked.

    Returns:
        How many requests were written.
    """
    count = 0
    with _opened(path, "wb") as file:
        file.write(_encoder.encode(header) + b"\n")
        for request in requests:
            file.write(_encoder.encode(request) + b"\n")
            count += 1
    return count


def read_header(path: Path | str) -> Header:
    with _opened(path, "rb") as file:
        return _decoded(_header_decoder, file.readline(), path, 1)


def stream(path: Path | str) -> Iterator[Request]:
    """The requests of a replay file, one at a time; each line is checked, the whole is not."""
    with _opened(path, "rb") as file:
        _decoded(_header_decoder, file.readline(), path, 1)
        for number, line in enumerate(file, 2):
            if line.strip():
                yield _decoded(_request_decoder, line, path, number)


def read(path: Path | str) -> Workload:
    """A whole replay file, validated.

    Raises:
        ReplayError: naming the file, and the line where one line is at fault.
    """
    header = read_header(path)
    try:
        return Workload(header, stream(path))
    except ReplayError as error:
        message = str(error)
        where = "" if message.startswith(f"{path}:") else f"{path}: "
        raise ReplayError(where + message) from None


def save(path: Path | str, workload: Workload) -> int:
    return write(path, workload.header, workload.requests)


def _decoded(
    decoder: "msgspec.json.Decoder[_Line]", line: bytes, path: Path | str, number: int
) -> _Line:
    try:
        return decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise ReplayError(f"{path}:{number}: {error}") from error


@contextmanager
def _opened(path: Path | str, mode: Literal["rb", "wb"]) -> Iterator[IO[bytes]]:
    with open(path, mode) as file:
        if not str(path).endswith(".gz"):
            yield file
            return
        # Without name and time in its header the same content gives the same bytes.
        with gzip.GzipFile(filename="", mode=mode, fileobj=file, mtime=0) as packed:
            yield packed  # type: ignore[misc]
