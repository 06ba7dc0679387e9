"""How a client's messages travel: HTTP or ZeroMQ, waiting or awaiting, each an exchange of dicts."""

from typing import Any, Protocol
from urllib.parse import urlsplit


class SignalError(RuntimeError):
    """A signal was refused or lost. ``code`` is the server's, or one of the client's own:
    ``unreachable``, ``timeout``, ``bad_reply``, ``unsupported``, ``not_found``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Transport(Protocol):
    def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        """Sends a signal and returns the server's reply.

        Raises:
            SignalError: nothing came back in time, or nothing that is a reply.
        """

    def status(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    async def exchange(self, message: dict[str, Any]) -> dict[str, Any]: ...

    async def status(self) -> dict[str, Any]: ...

    async def close(self) -> None: ...


def is_http(target: str) -> bool:
    """Which of the two kinds ``target`` is.

    Raises:
        ValueError: it is neither.
    """
    expected = f"target: expected http://HOST:PORT, tcp://HOST:PORT or ipc://PATH, got {target!r}"
    try:
        url = urlsplit(target)
        names_host, names_port = bool(url.hostname), bool(url.port)
    except ValueError as error:  # a port that is none
        raise ValueError(f"{expected}: {error}") from None
    if url.scheme in ("http", "https") and names_host:
        return True
    if url.scheme == "tcp" and names_host and names_port:
        return False
    if url.scheme == "ipc" and target.removeprefix("ipc://"):
        return False
    raise ValueError(expected)
