"""The extension in the server's main process: tags on the way in, signals on the way down."""

import asyncio
import itertools
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.tokenizer_manager import ServerStatus

from tokencake_sglang import __version__
from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.events import AnyEvent
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.config import ConfigError, TokencakeConfig
from tokencake_sglang.engine.durations_file import SAVE_INTERVAL_S, DurationsFile
from tokencake_sglang.engine.messages import TokencakeEvent, TokencakeStatusReq
from tokencake_sglang.engine.recording import Recording
from tokencake_sglang.engine.request_tag import with_tag
from tokencake_sglang.signals.front_door import FrontDoor
from tokencake_sglang.signals.http import create_router
from tokencake_sglang.signals.tag_middleware import TagMiddleware
from tokencake_sglang.signals.tagging import find_tag
from tokencake_sglang.signals.zmq_door import ZmqDoor, check_endpoint, default_endpoint

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

logger = logging.getLogger(__name__)

STATUS_TIMEOUT_S = 30.0

HTTP_SERVER_MODULE = "sglang.srt.entrypoints.http_server"


def _is_last(response: Any) -> bool:
    meta = response.get("meta_info") if isinstance(response, dict) else None
    return meta is not None and meta.get("finish_reason") is not None


def check_decision_log(config: TokencakeConfig) -> None:
    """Tries the file that a scheduler opens only after the model was loaded.

    Raises:
        ConfigError: it cannot be written.
    """
    if config.decision_log is None:
        return
    try:
        Path(config.decision_log).open("a").close()
    except OSError as error:
        raise ConfigError(
            f"--tokencake-decision-log: cannot write {config.decision_log!r}: {error.strerror}"
        ) from None


class MainProcess:
    """What one TokenizerManager carries of the extension: the front door and its two doors.

    Raises:
        ConfigError: the ZeroMQ endpoint cannot be bound, the recording not be opened, or the file
            of durations not be read.
    """

    def __init__(self, config: TokencakeConfig, tokenizer_manager: "TokenizerManager") -> None:
        self.config = config
        self.tokenizer_manager = tokenizer_manager
        self._durations_file = (
            DurationsFile(config.durations_file, config.default_call_s)
            if config.durations_file is not None
            else None
        )
        kept = self._durations_file
        self.front_door = FrontDoor(
            config,
            self._send,
            time.monotonic,
            durations=kept.known if kept is not None else None,
            follow=kept.follow if kept is not None else None,
        )
        server_args = tokenizer_manager.server_args
        endpoint = config.zmq_endpoint or default_endpoint(server_args.port)
        self.zmq_endpoint = None if endpoint == "off" else endpoint
        if self.zmq_endpoint is not None:
            check_endpoint(self.zmq_endpoint)
        self._zmq_door = (
            ZmqDoor(self.front_door, self.zmq_endpoint, server_args.api_key)
            if self.zmq_endpoint
            else None
        )
        self._started = False
        self._serves_http = False
        self._numbers = itertools.count()
        self._recording = (
            Recording(
                config.record,
                page_size=tokenizer_manager.config_value("page_size"),
                model=tokenizer_manager.model_path,
                agent_timeout_s=config.agent_timeout_s,
            )
            if config.record is not None
            else None
        )

    # -- start ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens both doors and starts the clock; once, on the server's event loop."""
        if self._started:
            return
        self._started = True
        self.front_door.open()
        if self._zmq_door is not None:
            self._zmq_door.start()
            logger.info("tokencake: signals over ZeroMQ at %s", self.zmq_endpoint)
        loop = asyncio.get_event_loop()
        tasks = self.tokenizer_manager.asyncio_tasks
        tasks.add(loop.create_task(self._tick_forever()))
        if self._durations_file is not None:
            tasks.add(loop.create_task(self._save_forever(self._durations_file)))

    def add_http_routes(self) -> None:
        """Adds routes and the tag check to SGLang's HTTP app, if this process serves one."""
        http_server = sys.modules.get(HTTP_SERVER_MODULE)
        if http_server is None:
            return
        app = http_server.app
        app.state.tokencake = self
        self._serves_http = True

        async def status() -> dict[str, Any]:
            return await app.state.tokencake.status()

        app.include_router(create_router(self.front_door, status))
        app.add_middleware(TagMiddleware)
        inner_lifespan = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(fast_api_app):
            # Signals may come before the first request does.
            app.state.tokencake.tokenizer_manager.auto_create_handle_loop()
            async with inner_lifespan(fast_api_app) as state:
                yield state
            app.state.tokencake.close()

        app.router.lifespan_context = lifespan

    # -- the event log --------------------------------------------------------------------------

    def _send(self, sequence: int, stamp_s: float, event: AnyEvent) -> None:
        if self._recording is not None:
            self._recording.event(event)
        self.tokenizer_manager._dispatch_to_scheduler(TokencakeEvent.of(sequence, stamp_s, event))

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(self.config.tick_interval_s)
            if self.front_door.needs_ticks():
                self.front_door.tick()

    async def _save_forever(self, durations_file: DurationsFile) -> None:
        while True:
            await asyncio.sleep(SAVE_INTERVAL_S)
            await durations_file.save()

    # -- requests -------------------------------------------------------------------------------

    async def generate(
        self,
        generate_request: Callable[..., AsyncIterator[Any]],
        obj: Any,
        request: Any,
    ) -> AsyncIterator[Any]:
        """Wraps ``TokenizerManager.generate_request``: tells the front door of begin and end."""
        tags = self._tags(obj, request)
        requests = [f"{next(self._numbers)}" for tag in tags]
        for number, tag in zip(requests, tags, strict=True):
            self.front_door.request_begin(tag, number)
        try:
            async for response in generate_request(self.tokenizer_manager, obj, request):
                # A caller that has its one answer may never close this generator.
                if requests and obj.is_single and _is_last(response):
                    self._end(requests)
                yield response
        finally:
            self._end(requests)

    def _end(self, requests: list[str]) -> None:
        for number in requests:
            self.front_door.request_end(number)

    def _tags(self, obj: Any, request: Any) -> list[AgentTag | None]:
        """Finds the tag of each request of ``obj`` and writes it, validated, to where the ranks
        look for it; empty when ``obj`` is no generation.

        Raises:
            AgentError: which SGLang's routes answer as a bad request.
        """
        if not isinstance(obj, GenerateReqInput):
            return []
        headers = request.headers if request is not None else {}
        session_id = obj.session_id if isinstance(obj.session_id, str) else None

        def tag_of(params: dict | None) -> AgentTag | None:
            return find_tag((params or {}).get("custom_params"), headers, session_id)

        if isinstance(obj.sampling_params, list):
            tags = [tag_of(params) for params in obj.sampling_params]
            obj.sampling_params = [
                params if tag is None else with_tag(params, tag)
                for params, tag in zip(obj.sampling_params, tags, strict=True)
            ]
            return tags
        tag = tag_of(obj.sampling_params)
        if tag is not None:
            obj.sampling_params = with_tag(obj.sampling_params, tag)
        return [tag]

    # -- recording ------------------------------------------------------------------------------

    def record_dispatch(self, message: Any) -> None:
        """A message goes to the scheduler; SGLang's own warm-up is not recorded."""
        manager = self.tokenizer_manager
        if self._serves_http and manager.server_status == ServerStatus.Starting:
            return
        if self._recording is not None:
            self._recording.dispatched(message, manager.rid_to_state)

    def record_answers(self, answers: AsyncIterator[Any], obj: Any, state: Any) -> Any:
        if self._recording is None or not isinstance(obj, GenerateReqInput):
            return answers
        return self._recording.answered(answers, obj.rid, state)

    def close(self) -> None:
        """The server stops: what was recorded and learnt is written."""
        if self._recording is not None:
            self._recording.close()
        if self._durations_file is not None:
            self._durations_file.close()

    # -- status ---------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Front door and every data-parallel rank, for ``GET /tokencake/status``.

        Raises:
            AgentError: the ranks are too busy to answer, or stuck.
        """
        self.tokenizer_manager.auto_create_handle_loop()
        communicator = self.tokenizer_manager.tokencake_communicator
        try:
            replies = await asyncio.wait_for(communicator(TokencakeStatusReq()), STATUS_TIMEOUT_S)
        except TimeoutError:
            raise AgentError(
                ErrorCode.UNAVAILABLE, f"the ranks did not answer within {STATUS_TIMEOUT_S:g} s"
            ) from None
        return {
            "version": __version__,
            "config": {**asdict(self.config), "zmq_endpoint": self.zmq_endpoint or "off"},
            "front_door": self.front_door.snapshot(),
            "ranks": [reply.status() for reply in replies],
            **({} if self._recording is None else {"recording": self._recording.snapshot()}),
        }
