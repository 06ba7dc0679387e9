"""A client's messages over ZeroMQ, waiting and awaiting."""

import asyncio
import itertools
import threading
import time
from typing import Any

import msgspec

from tokencake_sglang.signals.transports import SignalError


class _ZmqFormat:
    """Messages of both ZeroMQ transports: a DEALER with numbered requests.

    A REQ socket is stuck for good after one lost reply; a DEALER goes on, and a late reply is told
    from the one that is waited for by its number.
    """

    def __init__(self, target: str, api_key: str | None, timeout_s: float) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._common = {"api_key": api_key} if api_key else {}
        self._numbers = itertools.count(1)

    def open(self, context: Any) -> Any:
        import zmq

        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        # Without a connection a signal is lost now, rather than delivered when it is long untrue.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.connect(self.target)
        return socket

    def encode(self, message: dict[str, Any]) -> tuple[int, bytes]:
        number = next(self._numbers)
        return number, msgspec.msgpack.encode({**message, **self._common, "request": number})

    def decode(self, frames: list[bytes]) -> dict[str, Any]:
        try:
            reply = msgspec.msgpack.decode(frames[-1])
        except (msgspec.DecodeError, ValueError) as error:
            raise SignalError("bad_reply", f"{self.target}: {error}") from None
        if not isinstance(reply, dict) or "ok" not in reply:
            raise SignalError("bad_reply", f"{self.target} answered {reply!r:.120}")
        return reply

    def timeout(self, reached: bool) -> SignalError:
        if reached:
            return SignalError("timeout", f"{self.target}: no reply within {self.timeout_s:g} s")
        return SignalError("unreachable", f"{self.target}: no connection in {self.timeout_s:g} s")

    def no_status(self) -> SignalError:
        return SignalError(
            "unsupported", f"status: needs an http:// target, this client's is {self.target!r}"
        )


class ZmqTransport:
    """Safe for use from several threads, which take turns."""

    def __init__(self, target: str, api_key: str | None, timeout_s: float) -> None:
        import zmq

        self._zmq = zmq
        self._format = _ZmqFormat(target, api_key, timeout_s)
        self._socket = self._format.open(zmq.Context.instance())
        self._turn = threading.Lock()

    def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        deadline_s = time.monotonic() + self._format.timeout_s
        if not self._turn.acquire(timeout=self._format.timeout_s):
            raise self._format.timeout(reached=False)
        try:
            number, payload = self._format.encode(message)
            if not self._wait(self._zmq.POLLOUT, deadline_s):
                raise self._format.timeout(reached=False)
            self._socket.send(payload, self._zmq.NOBLOCK)
            while self._wait(self._zmq.POLLIN, deadline_s):
                reply = self._format.decode(self._socket.recv_multipart(self._zmq.NOBLOCK))
                if reply.get("request") in (number, None):
                    return reply
            raise self._format.timeout(reached=True)
        except self._zmq.ZMQError as error:
            raise SignalError("unreachable", f"{self._format.target}: {error}") from error
        finally:
            self._turn.release()

    def _wait(self, event: int, deadline_s: float) -> bool:
        remaining_s = max(0.0, deadline_s - time.monotonic())
        return bool(self._socket.poll(remaining_s * 1000, event))

    def status(self) -> dict[str, Any]:
        raise self._format.no_status()

    def close(self) -> None:
        self._socket.close()


class AsyncZmqTransport:
    """Any number of exchanges at once; opens its socket anew on every event loop."""

    def __init__(self, target: str, api_key: str | None, timeout_s: float) -> None:
        import zmq
        import zmq.asyncio

        self._zmq = zmq
        self._format = _ZmqFormat(target, api_key, timeout_s)
        # The process's own: one that is collected with an open socket in it would block.
        self._context = zmq.asyncio.Context.instance()
        self._socket: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        self._open()
        number, payload = self._format.encode(message)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        sent = False
        try:
            async with asyncio.timeout(self._format.timeout_s):
                await self._socket.send(payload)
                sent = True
                return await future
        except TimeoutError:
            raise self._format.timeout(reached=sent) from None
        except self._zmq.ZMQError as error:
            raise SignalError("unreachable", f"{self._format.target}: {error}") from error
        finally:
            self._waiting.pop(number, None)

    def _open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._socket is not None and self._loop is loop:
            return
        if self._socket is not None:
            self._socket.close()
        self._socket, self._loop, self._waiting = self._format.open(self._context), loop, {}
        self._reader = loop.create_task(self._read(self._socket), name="tokencake signal replies")

    async def _read(self, socket: Any) -> None:
        while not socket.closed:
            try:
                reply = self._format.decode(await socket.recv_multipart())
            except SignalError:
                continue  # whoever waits for it times out
            future = self._waiting.get(reply.get("request"))  # type: ignore[arg-type]
            if future is not None and not future.done():
                future.set_result(reply)

    async def status(self) -> dict[str, Any]:
        raise self._format.no_status()

    async def close(self) -> None:
        if self._reader is not None and self._loop is asyncio.get_running_loop():
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
