"""The frontend language's backend for a server with TokenCake.

::

    endpoint = TokencakeEndpoint("http://localhost:30000")
    with agent(endpoint, "programmer", application="run-7") as programmer:
        state = write_code.run(task, backend=endpoint)   # uses tool_call(s, "pytest") inside
    programmer.finish()
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.interpreter import ProgramState, StreamExecutor
from sglang.lang.ir import SglSamplingParams

from tokencake_sglang.frontend.agents import FrontendAgent, agent, run_as
from tokencake_sglang.frontend.executor import agent_of, install
from tokencake_sglang.signals.agent_handle import ToolCall
from tokencake_sglang.signals.client import Client

__all__ = ["FrontendAgent", "Response", "TokencakeEndpoint", "agent", "run_as", "tool_call"]


class UntoldCall:
    """In place of a ``ToolCall`` for a program that runs as nobody: tells nobody."""

    call_id = None

    def progress(self, **_: float | str | None) -> None:
        pass


class Response(msgspec.Struct, frozen=True):
    """One answered request. Seconds are measured here, the client's side."""

    agent: FrontendAgent | None
    meta_info: dict[str, Any]
    started_s: float
    """On ``time.monotonic``."""
    duration_s: float
    ttft_s: float | None
    """Time to first token; only streamed requests know it."""

    @property
    def prompt_tokens(self) -> int:
        return self.meta_info.get("prompt_tokens", 0)

    @property
    def cached_tokens(self) -> int:
        """How many of the prompt's tokens the server did not have to compute."""
        return self.meta_info.get("cached_tokens", 0)


class TokencakeEndpoint(RuntimeEndpoint):
    """A ``RuntimeEndpoint`` whose requests carry the agent that their program runs as.

    Args:
        signals: sends the tool calls; by default over HTTP to the same server.
        on_response: called after each answer, in the thread that ran the request.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        chat_template_name: str | None = None,
        *,
        signals: Client | None = None,
        on_response: Callable[[Response], None] | None = None,
    ) -> None:
        super().__init__(base_url, api_key, verify, chat_template_name)
        install()
        self.signals = signals or Client(base_url, api_key)
        self.on_response = on_response

    # -- requests -----------------------------------------------------------------------------

    def generate(
        self, s: StreamExecutor, sampling_params: SglSamplingParams
    ) -> tuple[str, dict[str, Any]]:
        started_s = time.monotonic()
        text, meta_info = super().generate(s, _tagged(sampling_params, s))
        self._answered(s, meta_info, started_s)
        return text, meta_info

    def generate_stream(
        self, s: StreamExecutor, sampling_params: SglSamplingParams
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        started_s = time.monotonic()
        ttft_s = None
        meta_info: dict[str, Any] = {}
        for text, meta_info in super().generate_stream(s, _tagged(sampling_params, s)):
            if ttft_s is None:
                ttft_s = time.monotonic() - started_s
            yield text, meta_info
        self._answered(s, meta_info, started_s, ttft_s)

    def commit_lazy_operations(self, s: StreamExecutor) -> None:
        self._prefill(s)

    def fill_image(self, s: StreamExecutor) -> None:
        self._prefill(s)

    def _prefill(self, s: StreamExecutor) -> None:
        self._generate_http_request(s, {"text": s.text_, "sampling_params": {"max_new_tokens": 0}})

    def _generate_http_request(self, s: StreamExecutor, data: dict[str, Any]) -> Any:
        """Every request that is no generation, those of ``select`` among them."""
        custom_params = _custom_params(s)
        if custom_params is not None:
            params = {**data["sampling_params"], "custom_params": custom_params}
            data = {**data, "sampling_params": params}
        started_s = time.monotonic()
        answer = super()._generate_http_request(s, data)
        for one in answer if isinstance(answer, list) else [answer]:
            self._answered(s, one["meta_info"], started_s)
        return answer

    def _answered(
        self,
        s: StreamExecutor,
        meta_info: dict[str, Any],
        started_s: float,
        ttft_s: float | None = None,
    ) -> None:
        if self.on_response is not None:
            duration_s = time.monotonic() - started_s
            self.on_response(Response(agent_of(s), meta_info, started_s, duration_s, ttft_s))

    # -- agents -------------------------------------------------------------------------------

    def end_program(self, s: StreamExecutor) -> None:
        """A joined branch has no further turn; the agent that it was forked from may have."""
        super().end_program(s)
        handle = agent_of(s)
        if handle is None or not getattr(s, "is_branch", False) or sys.is_finalizing():
            return
        s.is_branch = False  # called several times for each executor, last by its destructor
        if handle.has_requested:
            handle.finish()

    def agent(self, name: str, **options: Any) -> AbstractContextManager[FrontendAgent]:
        """As the function :func:`~tokencake_sglang.frontend.agents.agent`."""
        return agent(self, name, **options)


@contextmanager
def tool_call(
    s: ProgramState,
    tool: str,
    predicted_s: float | None = None,
    arguments: Any = None,
    stages: Sequence[str] = (),
) -> Iterator[ToolCall | UntoldCall]:
    """The program's agent is in a tool call while the block runs; gives the call, to report progress.

    The arguments are those of ``AgentHandle.tool_call``. Waits first until everything that ``s`` was
    asked to generate is there. Does nothing more for a program that runs as nobody; then the call's
    id is None.
    """
    s.sync()
    handle = agent_of(s.stream_executor)
    if handle is None:
        yield UntoldCall()
        return
    with handle.tool_call(tool, predicted_s, arguments, stages) as call:
        yield call


def _custom_params(s: StreamExecutor) -> dict[str, Any] | None:
    """What a request of ``s``, about to be sent, says of its agent."""
    handle = agent_of(s)
    if handle is None:
        return None
    handle.has_requested = True
    return handle.custom_params


def _tagged(params: SglSamplingParams, s: StreamExecutor) -> SglSamplingParams:
    """A copy whose request parameters carry the tag: ``sgl.gen`` has no field for it."""
    custom_params = _custom_params(s)
    if custom_params is None:
        return params
    tagged = copy.copy(params)
    # Evaluated when the request is made: before that RuntimeEndpoint turns a dtype into a regex.
    tagged.to_srt_kwargs = lambda: {
        **SglSamplingParams.to_srt_kwargs(tagged),
        "custom_params": custom_params,
    }
    return tagged
