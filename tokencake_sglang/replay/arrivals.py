"""How many applications there are and when each begins; what follows inside them is unchanged."""

import heapq
import math
import random
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Request, ToolCall, Workload


def equal_spacing(workload: Workload, rate: float) -> Workload:
    """Applications begin one after the other, ``rate`` a second, in file order, from second 0."""
    _check_rate(rate)
    starts = [round(index / rate, 6) for index in range(len(workload.applications))]
    return _starting_at(workload, starts, {"arrivals": "equal", "rate": rate})


def poisson(workload: Workload, rate: float, seed: int) -> Workload:
    """Applications begin as a Poisson process of ``rate`` a second; the first begins at 0."""
    _check_rate(rate)
    generator = random.Random(f"arrivals/{seed}")
    starts, now_s = [], 0.0
    for _ in workload.applications:
        starts.append(round(now_s, 6))
        now_s -= math.log(1.0 - generator.random()) / rate
    return _starting_at(
        workload, starts, {"arrivals": "poisson", "rate": rate, "arrival_seed": seed}
    )


def lanes(workload: Workload, count: int, token_s: float = 0.03) -> Workload:
    """Keeps ``count`` applications under way: each begins when the one before it in its lane ends.

    Applications are dealt in file order to the lane that would be free first on a server that
    takes ``token_s`` seconds an output token. The dealing does not depend on the system that is
    measured, so every system does the same work in the same order, and sessions compare pairwise.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1 lane, got {count}")
    length_s = schedule(workload, lambda request: request.output_length * token_s).application_s
    free: list[tuple[float, int]] = [(0.0, lane) for lane in range(count)]
    previous: dict[int, tuple[str, ...]] = {}
    after: dict[str, tuple[str, ...]] = {}
    for name, requests in workload.applications.items():
        free_s, lane = heapq.heappop(free)
        after[name] = previous.get(lane, ())
        previous[lane] = _last(requests)
        heapq.heappush(free, (free_s + length_s[name], lane))
    first = _first_arrivals(workload)

    def change(request: Request) -> Request:
        if request.arrival_s is None:
            return request
        offset_s = request.arrival_s - first[request.group]
        if not after[request.group]:
            return replace(request, arrival_s=offset_s)
        return replace(
            request,
            arrival_s=None,
            wait_for=after[request.group],
            delay_s=request.delay_s + offset_s,
        )

    return workload.map(change, {"arrivals": "lanes", "lanes": count})


def replicate(workload: Workload, count: int) -> Workload:
    """``count`` copies of every application, named ``NAME#0``, ``NAME#1``, …

    Request ids and the segments that begin with ``NAME/`` are the copy's own; other segments stay,
    so copies share them.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1 copy, got {count}")
    renamed: list[Request] = []
    for index in range(count):
        for name, requests in workload.applications.items():
            ids = {
                request.request_id: _copied(request.request_id, name, index) for request in requests
            }
            renamed.extend(_copy(request, name, index, ids) for request in requests)
    options = {**workload.header.options, "copies": count}
    return Workload(replace(workload.header, options=options), renamed)


def later(workload: Workload, by_s: float) -> Workload:
    """All applications begin ``by_s`` seconds later."""

    def change(request: Request) -> Request:
        if request.arrival_s is None:
            return request
        return replace(request, arrival_s=round(request.arrival_s + by_s, 6))

    return workload.map(change, {"later_s": by_s})


def with_tenants(workload: Workload, tenants: Sequence[str]) -> Workload:
    """Deals the applications out to the tenants in turn, in file order; untagged requests to none."""
    named = [name for name, requests in workload.applications.items() if requests[0].application]
    tenant_of = {name: tenants[index % len(tenants)] for index, name in enumerate(named)}
    return workload.map(
        lambda request: replace(request, tenant=tenant_of.get(request.group)),
        {"tenants": ",".join(tenants)},
    )


def merge(name: str, workloads: Iterable[Workload]) -> Workload:
    """Several workloads at once, such as agents before a background of chat."""
    parts = list(workloads)
    return Workload(
        replace(
            parts[0].header,
            name=name,
            source="; ".join(dict.fromkeys(part.header.source for part in parts)),
            licence="; ".join(dict.fromkeys(part.header.licence for part in parts)),
            block_size=None,
            options={
                f"{part.name}.{key}": value
                for part in parts
                for key, value in part.header.options.items()
            },
        ),
        (request for part in parts for request in part.requests),
    )


def _check_rate(rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate: expected applications a second above 0, got {rate}")


def _first_arrivals(workload: Workload) -> dict[str, float]:
    return {
        name: min((r.arrival_s for r in requests if r.arrival_s is not None), default=0.0)
        for name, requests in workload.applications.items()
    }


def _starting_at(
    workload: Workload, starts: list[float], options: Mapping[str, int | float | str]
) -> Workload:
    """Moves every application's roots by the same amount, so that the earliest is at its start."""
    move_s = {
        name: start_s - first_s
        for (name, first_s), start_s in zip(_first_arrivals(workload).items(), starts, strict=True)
    }

    def change(request: Request) -> Request:
        if request.arrival_s is None:
            return request
        return replace(request, arrival_s=round(request.arrival_s + move_s[request.group], 6))

    return workload.map(change, options)


def _last(requests: tuple[Request, ...]) -> tuple[str, ...]:
    """The requests that no other of the application waits for."""
    waited_for = {name for request in requests for name in request.wait_for}
    waited_for.update(name for request in requests if request.call for name in request.call.until)
    return tuple(r.request_id for r in requests if r.request_id not in waited_for)


def _copied(name: str, application: str, index: int) -> str:
    """``NAME/rest`` becomes ``NAME#index/rest``; any other name gets the suffix at its end."""
    if name == application or not name.startswith(f"{application}/"):
        return f"{name}#{index}"
    return f"{application}#{index}{name.removeprefix(application)}"


def _copy(request: Request, application: str, index: int, ids: Mapping[str, str]) -> Request:
    def spans(of: tuple[Span, ...]) -> tuple[Span, ...]:
        return tuple(
            span._replace(segment=_copied(span.segment, application, index))
            if span.segment.startswith(f"{application}/")
            else span
            for span in of
        )

    def call(of: ToolCall) -> ToolCall:
        return replace(of, until=tuple(ids[name] for name in of.until))

    return replace(
        request,
        request_id=ids[request.request_id],
        application=None if request.application is None else f"{application}#{index}",
        wait_for=tuple(ids[name] for name in request.wait_for),
        spawned_by=None if request.spawned_by is None else ids[request.spawned_by],
        prompt=spans(request.prompt),
        output=spans(request.output),
        call=None if request.call is None else call(request.call),
    )
