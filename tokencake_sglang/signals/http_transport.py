"""A client's messages over HTTP, waiting and awaiting."""

import asyncio
from typing import Any, NoReturn

from tokencake_sglang.signals.transports import SignalError


class _HttpFormat:
    """Requests and replies of both HTTP transports."""

    def __init__(self, target: str, api_key: str | None, timeout_s: float) -> None:
        self.target = target.rstrip("/")
        self.options: dict[str, Any] = {
            "timeout": timeout_s,
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        }

    def signal(self, message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return f"{self.target}/tokencake/signal", {"json": message}

    @property
    def status(self) -> str:
        return f"{self.target}/tokencake/status"

    def signal_reply(self, response: Any) -> dict[str, Any]:
        body = _json(response)
        return body if isinstance(body, dict) and "ok" in body else self._stranger(response)

    def status_reply(self, response: Any) -> dict[str, Any]:
        body = _json(response)
        found = isinstance(body, dict) and response.status_code == 200
        return body if found else self._stranger(response)

    def _stranger(self, response: Any) -> NoReturn:
        """Whatever answered, it was not TokenCake."""
        code = {401: "unauthorized", 404: "not_found"}.get(response.status_code, "bad_reply")
        raise SignalError(
            code,
            f"{self.target} answered {response.status_code} {response.text!r:.120}; "
            "is the server running with TokenCake, and the API key right?",
        )

    def failure(self, error: Exception, timed_out: bool) -> SignalError:
        code = "timeout" if timed_out else "unreachable"
        return SignalError(code, f"{self.target}: {error!r:.200}")


def _json(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


class HttpTransport:
    """Safe for use from several threads."""

    def __init__(self, target: str, api_key: str | None, timeout_s: float) -> None:
        import httpx  # only those who use it pay for its import

        self._errors = httpx
        self._format = _HttpFormat(target, api_key, timeout_s)
        self._client = httpx.Client(**self._format.options)

    def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        url, options = self._format.signal(message)
        return self._format.signal_reply(self._send("POST", url, **options))

    def status(self) -> dict[str, Any]:
        return self._format.status_reply(self._send("GET", self._format.status))

    def close(self) -> None:
        self._client.close()

    def _send(self, method: str, url: str, **options: Any) -> Any:
        try:
            return self._client.request(method, url, **options)
        except self._errors.HTTPError as error:
            raise self._format.failure(
                error, isinstance(error, self._errors.TimeoutException)
            ) from error


class AsyncHttpTransport:
    """Opens its connections anew on every event loop that it is used on."""

    def __init__(self, target: str, api_key: str | None, timeout_s: float) -> None:
        import httpx

        self._errors = httpx
        self._format = _HttpFormat(target, api_key, timeout_s)
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        url, options = self._format.signal(message)
        return self._format.signal_reply(await self._send("POST", url, **options))

    async def status(self) -> dict[str, Any]:
        return self._format.status_reply(await self._send("GET", self._format.status))

    async def close(self) -> None:
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.aclose()
        self._client = None

    async def _send(self, method: str, url: str, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client = self._errors.AsyncClient(**self._format.options)
            self._loop = loop
        try:
            return await self._client.request(method, url, **options)
        except self._errors.HTTPError as error:
            raise self._format.failure(
                error, isinstance(error, self._errors.TimeoutException)
            ) from error
