"""Refuses requests with invalid tags before their route runs, so that streaming ones get a 400 too."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import msgspec

from tokencake_sglang.agents.errors import AgentError
from tokencake_sglang.agents.identity import parse_tag
from tokencake_sglang.signals.tagging import HEADER_PREFIX, PARAMS_KEY, tag_of_headers

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_HEADER_PREFIX = HEADER_PREFIX.encode()
_QUOTED_KEY = f'"{PARAMS_KEY}"'.encode()


class TagMiddleware:
    """Pure ASGI middleware for POSTs. Requests without tags pass untouched.

    The body is parsed only if the tag's key occurs in it; it reaches the app in the very messages
    that the server received.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        received: deque[Message] = deque()
        try:
            _check_headers(scope["headers"])
            if _may_be_json(scope["headers"]):
                received = await _receive_body(receive)
                _check_body(b"".join(message.get("body", b"") for message in received))
        except AgentError as error:
            return await _send_refusal(error, send)

        async def replay() -> Message:
            return received.popleft() if received else await receive()

        await self.app(scope, replay, send)


def _check_headers(headers: list[tuple[bytes, bytes]]) -> None:
    tag_of_headers(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
        if name.lower().startswith(_HEADER_PREFIX)
    )


def _may_be_json(headers: list[tuple[bytes, bytes]]) -> bool:
    """Uploads of other kinds (audio, files) stream on without being collected here."""
    kinds = [value for name, value in headers if name.lower() == b"content-type"]
    return not kinds or b"json" in kinds[0].lower()


async def _receive_body(receive: Receive) -> deque[Message]:
    """Every message up to the end of the body, or to the disconnect that cut it short."""
    received: deque[Message] = deque()
    while True:
        message = await receive()
        received.append(message)
        if message["type"] != "http.request" or not message.get("more_body", False):
            return received


def _check_body(body: bytes) -> None:
    if _QUOTED_KEY not in body:
        return
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return  # the route says what is wrong with it
    for where, custom_params in _custom_params(value):
        if isinstance(custom_params, dict) and PARAMS_KEY in custom_params:
            parse_tag(custom_params[PARAMS_KEY], f"{where}.{PARAMS_KEY}")


def _custom_params(value: object) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        return
    yield "custom_params", value.get("custom_params")
    match value.get("sampling_params"):
        case dict() as params:
            yield "sampling_params.custom_params", params.get("custom_params")
        case list() as batch:
            for index, params in enumerate(batch):
                if isinstance(params, dict):
                    where = f"sampling_params[{index}].custom_params"
                    yield where, params.get("custom_params")


async def _send_refusal(error: AgentError, send: Send) -> None:
    body = msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": "BadRequestError",
                "code": error.http_status,
                "param": error.message.partition(": ")[0],
                "tokencake": error.code,
            }
        }
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
