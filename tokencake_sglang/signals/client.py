"""The client side: tells a server what an agent program does. Works without sglang installed.

::

    with Client("http://localhost:30000") as client:
        programmer = client.agent("programmer", application="run-7")
        answer = openai.chat.completions.create(..., extra_body=programmer.extra_body)
        with programmer.tool_call("pytest", predicted_s=20):
            run_tests()
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import msgspec

from tokencake_sglang.agents.errors import ErrorCode
from tokencake_sglang.signals.agent_handle import AgentHandle, AsyncAgentHandle
from tokencake_sglang.signals.http_transport import AsyncHttpTransport, HttpTransport
from tokencake_sglang.signals.transports import AsyncTransport, SignalError, Transport, is_http
from tokencake_sglang.signals.zmq_transport import AsyncZmqTransport, ZmqTransport

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Accepted(msgspec.Struct, frozen=True):
    """The server's acknowledgement; ``repeat``: it knew already."""

    sequence: int
    repeat: bool


class _Signals(ABC, Generic[Result]):
    """The signals, and what to do when one is lost; waiting or awaiting is the subclass's."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self._warned: set[str] = set()

    @abstractmethod
    def _send(self, message: dict[str, Any]) -> Result: ...

    def call_start(
        self,
        agent: str,
        call_id: str,
        tool: str,
        application: str | None = None,
        predicted_s: float | None = None,
        arguments_digest: str | None = None,
        arguments_size: int | None = None,
        stages: Sequence[str] = (),
    ) -> Result:
        """The agent stopped at a tool call.

        Args:
            predicted_s: its length in seconds, if known.
            arguments_digest: stands for the arguments; equal ones are expected to take about as long.
            arguments_size: how much they ask for, always in the same unit for a tool.
            stages: names of the parts it goes through, in order; ``call_progress`` tells of each.
        """
        return self._signal(
            "call_start",
            agent=agent,
            application=application,
            call_id=call_id,
            tool=tool,
            predicted_s=predicted_s,
            arguments_digest=arguments_digest,
            arguments_size=arguments_size,
            stages=list(stages) or None,
        )

    def call_progress(
        self,
        agent: str,
        call_id: str,
        application: str | None = None,
        *,
        fraction: float | None = None,
        remaining_s: float | None = None,
        stage: str | None = None,
    ) -> Result:
        """How far the tool call is: exactly one of the three.

        Args:
            fraction: of the call's time that is over, 0 to 1.
            remaining_s: seconds that are left, by a new estimate.
            stage: the stage that begins now.
        """
        return self._signal(
            "call_progress",
            agent=agent,
            application=application,
            call_id=call_id,
            fraction=fraction,
            remaining_s=remaining_s,
            stage=stage,
        )

    def call_finish(self, agent: str, call_id: str, application: str | None = None) -> Result:
        """The tool call returned."""
        return self._signal("call_finish", agent=agent, application=application, call_id=call_id)

    def agent_finish(self, agent: str, application: str | None = None) -> Result:
        """The agent sends no further request."""
        return self._signal("agent_finish", agent=agent, application=application)

    def application_start(
        self,
        application: str,
        graph: Mapping[str, Sequence[str]] | None = None,
        expected_s: Mapping[str, float] | None = None,
        expected_output_tokens: int | None = None,
    ) -> Result:
        """What the application is made of. May be sent before its first request and again; the
        latest one counts, as a whole.

        Args:
            graph: node → the nodes it waits for. A node is what tags call ``node``, or else an
                agent's name. Of its requests those with the longest way left go first.
            expected_s: of nodes, how long they take, tool calls included, where that is known.
            expected_output_tokens: what all its requests together will generate, roughly. Of
                applications that wait for room the smaller ones are let in first.

        Raises:
            ValueError: ``expected_s`` has a node that ``graph`` has not.
        """
        times_s = dict(expected_s or {})
        nodes = [
            {"name": name, "after": list(after), "expected_s": times_s.pop(name, None)}
            for name, after in (graph or {}).items()
        ]
        if times_s:
            raise ValueError(
                f"expected_s: {next(iter(times_s))!r} is none of the graph's nodes; they are "
                f"{', '.join(graph or {}) or 'none'}"
            )
        return self._signal(
            "application_start",
            application=application,
            graph=None if graph is None else nodes,
            expected_output_tokens=expected_output_tokens,
        )

    def application_finish(self, application: str) -> Result:
        """No agent of the application sends a further request."""
        return self._signal("application_finish", application=application)

    def _signal(self, kind: str, **fields: object) -> Result:
        given = {name: value for name, value in fields.items() if value is not None}
        return self._send({"type": kind, **given})

    def _accept(self, reply: dict[str, Any]) -> Accepted:
        if reply["ok"] is True:
            return Accepted(int(reply.get("sequence", 0)), bool(reply.get("repeat", False)))
        error = reply.get("error")
        error = error if isinstance(error, dict) else {}
        code = str(error.get("code", ErrorCode.UNAVAILABLE))
        raise SignalError(code, str(error.get("message", reply)))

    def _lost(self, error: SignalError) -> None:
        """A signal is advice: losing one must not stop the agent, unless its author wants that."""
        if self.strict:
            raise error
        if error.code not in self._warned:
            self._warned.add(error.code)
            logger.warning("%s (further ones of this kind are not logged)", error)


class Client(_Signals["Accepted | None"]):
    """Sends signals and waits for their acknowledgement. Safe for use from several threads.

    Args:
        target: ``http://HOST:PORT`` of the server, or ``tcp://…`` / ``ipc://…`` of its ZeroMQ door.
        timeout_s: longest wait for a signal.
        strict: raise ``SignalError`` where otherwise a warning is logged, once for each kind of
            failure, and None returned.
    """

    def __init__(
        self,
        target: str,
        api_key: str | None = None,
        timeout_s: float = 5.0,
        strict: bool = False,
    ) -> None:
        super().__init__(strict)
        transport = HttpTransport if is_http(target) else ZmqTransport
        self._transport: Transport = transport(target, api_key, timeout_s)

    def _send(self, message: dict[str, Any]) -> Accepted | None:
        try:
            return self._accept(self._transport.exchange(message))
        except SignalError as error:
            self._lost(error)
            return None

    def agent(
        self,
        name: str,
        application: str | None = None,
        agent_type: str = "default",
        node: str | None = None,
        critical: bool = False,
        tenant: str | None = None,
    ) -> AgentHandle:
        """One agent's tag and signals; raises ``AgentError`` on a name that cannot be one."""
        return AgentHandle(self, name, application, agent_type, node, critical, tenant)

    def status(self) -> dict[str, Any]:
        """The server's status; raises ``SignalError`` also if not strict. HTTP only."""
        return self._transport.status()

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Signals[Any]):
    """:class:`Client` for asyncio: the same methods, to be awaited, any number at once."""

    def __init__(
        self,
        target: str,
        api_key: str | None = None,
        timeout_s: float = 5.0,
        strict: bool = False,
    ) -> None:
        super().__init__(strict)
        transport = AsyncHttpTransport if is_http(target) else AsyncZmqTransport
        self._transport: AsyncTransport = transport(target, api_key, timeout_s)

    async def _send(self, message: dict[str, Any]) -> Accepted | None:
        try:
            return self._accept(await self._transport.exchange(message))
        except SignalError as error:
            self._lost(error)
            return None

    def agent(
        self,
        name: str,
        application: str | None = None,
        agent_type: str = "default",
        node: str | None = None,
        critical: bool = False,
        tenant: str | None = None,
    ) -> AsyncAgentHandle:
        """As :meth:`Client.agent`."""
        return AsyncAgentHandle(self, name, application, agent_type, node, critical, tenant)

    async def status(self) -> dict[str, Any]:
        """As :meth:`Client.status`."""
        return await self._transport.status()

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
