"""The HTTP door: signals in, status out."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.events import MAX_SIGNAL_BYTES, SIGNALS
from tokencake_sglang.signals.front_door import FrontDoor
from tokencake_sglang.signals.status_page import render

Status = Callable[[], Awaitable[dict[str, Any]]]


def create_router(
    front_door: FrontDoor, status: Status, dependencies: Sequence[Any] = ()
) -> APIRouter:
    """Routes under ``/tokencake``: one per signal, ``signal`` for all, ``status`` and a page.

    Args:
        status: what ``status`` and the page show; JSON values. May raise AgentError.
        dependencies: FastAPI dependencies of every route, for instance authorisation.
    """
    router = APIRouter(prefix="/tokencake", dependencies=list(dependencies))

    async def answer(request: Request, kind: str | None) -> JSONResponse:
        try:
            value = _with_kind(_decode(await _read(request)), kind)
        except AgentError as error:
            front_door.refuse(error)
            return _refusal(error)
        try:
            acknowledgement = front_door.receive(value)
        except AgentError as error:
            return _refusal(error)
        return JSONResponse({"ok": True, **msgspec.to_builtins(acknowledgement)})

    def add_route(path: str, kind: str | None) -> None:
        async def route(request: Request) -> JSONResponse:
            return await answer(request, kind)

        router.add_api_route(path, route, methods=["POST"], name=f"tokencake {path[1:]}")

    for kind in SIGNALS:
        add_route(f"/{kind}", kind)
    add_route("/signal", None)

    @router.get("/status", response_model=None)
    async def status_json() -> JSONResponse:
        try:
            return JSONResponse(await status())
        except AgentError as error:
            return _refusal(error)

    @router.get("/", response_model=None)
    async def status_page() -> HTMLResponse | JSONResponse:
        try:
            return HTMLResponse(render(await status()))
        except AgentError as error:
            return _refusal(error)

    return router


async def _read(request: Request) -> bytes:
    """The body, given up as soon as it is longer than a signal may be."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_SIGNAL_BYTES:
            raise AgentError(
                ErrorCode.MESSAGE_TOO_LONG,
                f"body: expected at most {MAX_SIGNAL_BYTES} bytes, got more",
            )
    return bytes(body)


def _decode(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise AgentError(
            ErrorCode.INVALID_MESSAGE, f"body: expected a JSON object, got {body!r:.60} ({error})"
        ) from None


def _with_kind(value: object, kind: str | None) -> object:
    if kind is None or not isinstance(value, dict):
        return value
    if value.get("type", kind) != kind:
        raise AgentError(
            ErrorCode.INVALID_MESSAGE,
            f"type: this path takes {kind}, got {value['type']!r:.100}; leave the field out",
        )
    return {**value, "type": kind}


def _refusal(error: AgentError) -> JSONResponse:
    return JSONResponse(
        {"ok": False, "error": {"code": str(error.code), "message": error.message}},
        status_code=error.http_status,
    )
