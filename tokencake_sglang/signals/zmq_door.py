"""The ZeroMQ door: thousands of signals a second beside the requests on the server's event loop."""

import asyncio
import hmac
import logging
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.events import MAX_SIGNAL_BYTES
from tokencake_sglang.config import ConfigError
from tokencake_sglang.signals.front_door import FrontDoor

logger = logging.getLogger(__name__)

OPTION = "--tokencake-zmq-endpoint"
MAX_FRAME_BYTES = 64 * MAX_SIGNAL_BYTES
"""Up to here an over-long message gets an answer; a longer frame ends the connection."""
BATCH = 256
"""Messages handled before the event loop gets a turn: a few milliseconds."""
REPLIES_QUEUED = 100_000
"""Replies kept for one client that does not read them; later ones are dropped."""
MAX_REQUEST_CHARS = 256


def default_endpoint(http_port: int) -> str:
    """Loopback, the HTTP port plus 1000, or minus 9000 where that is no port."""
    port = http_port + 1000
    return f"tcp://127.0.0.1:{port - 10_000 if port > 65_535 else port}"


def _bind(socket: "zmq.Socket[bytes] | zmq.asyncio.Socket", endpoint: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(
            f"{OPTION}: cannot listen on {endpoint!r}: {zmq.strerror(error.errno or 0)}; "
            "accepted are tcp://HOST:PORT, ipc://PATH or off"
        ) from None


def check_endpoint(endpoint: str) -> None:
    """Binds and frees again an address that is bound for good only once the event loop runs,
    where a failure would be buried in tracebacks.

    Raises:
        ConfigError: it cannot be bound.
    """
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        _bind(socket, endpoint)


class ZmqDoor:
    """A ROUTER socket for REQ and DEALER clients; msgpack maps in, msgpack maps out.

    A message is a signal with its ``type``, plus ``api_key`` where the server has one and
    ``request`` (an integer or a short text, echoed) where a client sends several before it reads.
    """

    def __init__(self, front_door: FrontDoor, endpoint: str, api_key: str | None = None) -> None:
        self.endpoint = endpoint
        self._front_door = front_door
        self._api_key = api_key
        self._context: zmq.asyncio.Context | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Binds and begins to serve; to be called on the running event loop.

        Raises:
            ConfigError: the endpoint cannot be bound.
        """
        self._context = zmq.asyncio.Context()
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.SNDHWM, REPLIES_QUEUED)
        socket.setsockopt(zmq.RCVHWM, 2 * BATCH)
        try:
            _bind(socket, self.endpoint)
        except ConfigError:
            socket.close()
            self._context.term()
            self._context = None
            raise
        self._task = asyncio.create_task(self._serve(socket), name="tokencake zmq door")

    async def stop(self) -> None:
        """Closes the socket; messages not yet read are dropped. Does nothing if not started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    async def _serve(self, socket: zmq.asyncio.Socket) -> None:
        # The same socket without asyncio: no future per message while there are more to read.
        direct: zmq.Socket[bytes] = zmq.Socket.shadow(socket.underlying)
        while True:
            try:
                frames = await socket.recv_multipart()
                for _ in range(BATCH):
                    self._answer(direct, frames)
                    frames = direct.recv_multipart(zmq.NOBLOCK)
                self._answer(direct, frames)
                await asyncio.sleep(0)
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                if error.errno in (zmq.ETERM, zmq.ENOTSOCK):
                    return
                logger.warning("zmq door on %s: %s", self.endpoint, error)
                await asyncio.sleep(0.01)
            except Exception:
                logger.exception("zmq door on %s", self.endpoint)
                await asyncio.sleep(0.01)

    def _answer(self, socket: "zmq.Socket[bytes]", frames: list[bytes]) -> None:
        has_delimiter = len(frames) > 2 and frames[1] == b""
        envelope, payload = (frames[:2], frames[2:]) if has_delimiter else (frames[:1], frames[1:])
        reply = self._reply(payload)
        try:
            socket.send_multipart([*envelope, msgspec.msgpack.encode(reply)], zmq.NOBLOCK)
        except zmq.Again:
            logger.debug("a client does not read its replies")

    def _reply(self, payload: list[bytes]) -> dict[str, Any]:
        request: int | str | None = None
        try:
            message = _decode(payload)
            request = _take_request(message)
            self._authorise(message.pop("api_key", None))
        except AgentError as error:
            self._front_door.refuse(error)
            return _refusal(error, request)
        try:
            acknowledgement = self._front_door.receive(message)
        except AgentError as error:
            return _refusal(error, request)
        return {
            "ok": True,
            "sequence": acknowledgement.sequence,
            "repeat": acknowledgement.repeat,
            "request": request,
        }

    def _authorise(self, given: object) -> None:
        if self._api_key is None:
            return
        if not isinstance(given, str) or not hmac.compare_digest(
            given.encode(), self._api_key.encode()
        ):
            raise AgentError(
                ErrorCode.UNAUTHORIZED,
                "api_key: expected the server's API key, "
                + ("got none" if given is None else "got another value"),
            )


def _decode(payload: list[bytes]) -> dict[Any, Any]:
    if len(payload) != 1:
        raise AgentError(
            ErrorCode.INVALID_MESSAGE, f"expected one frame with a msgpack map, got {len(payload)}"
        )
    if len(payload[0]) > MAX_SIGNAL_BYTES:
        raise AgentError(
            ErrorCode.MESSAGE_TOO_LONG,
            f"expected at most {MAX_SIGNAL_BYTES} bytes, got {len(payload[0])}",
        )
    try:
        message = msgspec.msgpack.decode(payload[0])
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise AgentError(
            ErrorCode.INVALID_MESSAGE, f"expected a msgpack map: {error!s:.200}"
        ) from None
    if not isinstance(message, dict):
        raise AgentError(
            ErrorCode.INVALID_MESSAGE, f"expected a msgpack map, got {type(message).__name__}"
        )
    return message


def _take_request(message: dict[Any, Any]) -> int | str | None:
    request = message.pop("request", None)
    if request is None or type(request) is int:
        return request
    if isinstance(request, str) and len(request) <= MAX_REQUEST_CHARS:
        return request
    raise AgentError(
        ErrorCode.INVALID_MESSAGE,
        f"request: expected an integer or a text of at most {MAX_REQUEST_CHARS} characters, "
        f"got {request!r:.60}",
    )


def _refusal(error: AgentError, request: int | str | None) -> dict[str, Any]:
    return {
        "ok": False,
        "error": {"code": str(error.code), "message": error.message},
        "request": request,
    }
