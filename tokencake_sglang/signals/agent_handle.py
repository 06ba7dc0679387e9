"""One agent as its program sees it: the tag for its requests, its tool calls, its end."""

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.identity import DEFAULT_AGENT_TYPE, parse_tag
from tokencake_sglang.signals.tagging import HEADERS, PARAMS_KEY
from tokencake_sglang.signals.transports import SignalError

if TYPE_CHECKING:
    from tokencake_sglang.signals.client import AsyncClient, Client

AnyClient = TypeVar("AnyClient", bound="Client | AsyncClient")


class _Handle(Generic[AnyClient]):
    def __init__(
        self,
        client: AnyClient,
        name: str,
        application: str | None = None,
        agent_type: str = DEFAULT_AGENT_TYPE,
        node: str | None = None,
        critical: bool = False,
        tenant: str | None = None,
    ) -> None:
        self._client = client
        self._tag = parse_tag(
            {
                "agent": name,
                "application": application,
                "agent_type": agent_type,
                "node": node,
                "critical": critical,
                "tenant": tenant,
            },
            where="agent",
        )

    @property
    def name(self) -> str:
        return self._tag.agent

    @property
    def application(self) -> str:
        return self._tag.key.application

    @property
    def tag(self) -> dict[str, str | bool]:
        """The tag as a flat dict, without the fields that say nothing."""
        return {name: value for name, value in self._tag.to_params().items() if value is not None}

    @property
    def custom_params(self) -> dict[str, Any]:
        """SGLang's ``custom_params``, at the top of OpenAI requests, in ``sampling_params`` of
        ``/generate``."""
        return {PARAMS_KEY: self.tag}

    @property
    def extra_body(self) -> dict[str, Any]:
        """For the OpenAI client: ``create(..., extra_body=agent.extra_body)``."""
        return {"custom_params": self.custom_params}

    @property
    def headers(self) -> dict[str, str]:
        """The tag as HTTP headers.

        Raises:
            AgentError: a value has characters that headers cannot carry.
        """
        tag = self.tag
        headers = {header: _text(tag[field]) for header, field in HEADERS.items() if field in tag}
        for header, text in headers.items():
            if not (text.isascii() and text.isprintable() and text == text.strip()):
                raise AgentError(
                    ErrorCode.INVALID_TAG,
                    f"{header}: expected printable ASCII without outer spaces, got {text!r:.100}; "
                    "custom_params carry any text",
                )
        return headers

    def _call(self, call_id: str) -> dict[str, Any]:
        return {"agent": self.name, "application": self.application, "call_id": call_id}

    def _call_start(
        self,
        call_id: str,
        tool: str,
        predicted_s: float | None,
        arguments: Any,
        stages: Sequence[str],
    ) -> Any:
        return self._client.call_start(
            **self._call(call_id),
            tool=tool,
            predicted_s=predicted_s,
            **({} if arguments is None else described(arguments)),
            stages=stages,
        )


class ToolCall:
    """A tool call under way, for the block that runs it."""

    def __init__(self, client: "Client", call: dict[str, Any]) -> None:
        self._client = client
        self._call = call

    @property
    def call_id(self) -> str:
        return str(self._call["call_id"])

    def progress(
        self,
        *,
        fraction: float | None = None,
        remaining_s: float | None = None,
        stage: str | None = None,
    ) -> None:
        """How far it is, in exactly one of three ways.

        Args:
            fraction: of its time that is over, 0 to 1.
            remaining_s: seconds that are left.
            stage: the one of its stages that begins now.
        """
        self._client.call_progress(
            **self._call, fraction=fraction, remaining_s=remaining_s, stage=stage
        )


class AsyncToolCall:
    """As :class:`ToolCall`."""

    def __init__(self, client: "AsyncClient", call: dict[str, Any]) -> None:
        self._client = client
        self._call = call

    @property
    def call_id(self) -> str:
        return str(self._call["call_id"])

    async def progress(
        self,
        *,
        fraction: float | None = None,
        remaining_s: float | None = None,
        stage: str | None = None,
    ) -> None:
        """As :meth:`ToolCall.progress`."""
        await self._client.call_progress(
            **self._call, fraction=fraction, remaining_s=remaining_s, stage=stage
        )


class AgentHandle(_Handle["Client"]):
    """One agent of a :class:`~tokencake_sglang.signals.client.Client`."""

    @contextmanager
    def tool_call(
        self,
        tool: str,
        predicted_s: float | None = None,
        arguments: Any = None,
        stages: Sequence[str] = (),
    ) -> Iterator[ToolCall]:
        """The agent is in a tool call while the block runs; gives the call, to report progress.

        Args:
            predicted_s: how long the call will take, if the program knows.
            arguments: what the tool is called with; only a digest of it and its
                length leave the program.
            stages: names of the parts that the call goes through, in order. The first begins at
                once, each other one with ``progress(stage=...)``.
        """
        call_id = uuid.uuid4().hex
        self._call_start(call_id, tool, predicted_s, arguments, stages)
        try:
            yield ToolCall(self._client, self._call(call_id))
        except BaseException:
            with suppress(SignalError):  # the tool's own error is the one to see
                self._client.call_finish(**self._call(call_id))
            raise
        self._client.call_finish(**self._call(call_id))

    def finish(self) -> None:
        """The agent sends no further request."""
        self._client.agent_finish(self.name, self.application)


class AsyncAgentHandle(_Handle["AsyncClient"]):
    """One agent of an :class:`~tokencake_sglang.signals.client.AsyncClient`."""

    @asynccontextmanager
    async def tool_call(
        self,
        tool: str,
        predicted_s: float | None = None,
        arguments: Any = None,
        stages: Sequence[str] = (),
    ) -> AsyncIterator[AsyncToolCall]:
        """As :meth:`AgentHandle.tool_call`."""
        call_id = uuid.uuid4().hex
        await self._call_start(call_id, tool, predicted_s, arguments, stages)
        try:
            yield AsyncToolCall(self._client, self._call(call_id))
        except BaseException:
            with suppress(SignalError):
                await self._client.call_finish(**self._call(call_id))
            raise
        await self._client.call_finish(**self._call(call_id))

    async def finish(self) -> None:
        """As :meth:`AgentHandle.finish`."""
        await self._client.agent_finish(self.name, self.application)


def described(arguments: Any) -> dict[str, Any]:
    """What is told of a tool call's arguments: 32 hexadecimal digits, and how many bytes they have
    as JSON. Equal arguments give equal digits."""
    text = json.dumps(arguments, sort_keys=True, default=str).encode()
    return {
        "arguments_digest": hashlib.sha256(text).hexdigest()[:32],
        "arguments_size": len(text),
    }


def _text(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value
