"""Records a live server into a replay file, beside the main process's event loop.

The hooks only put what happened into a queue; hashing, dependencies and writing are done by a
thread of their own. No request ever fails or waits for it: what cannot be recorded is left out, and
the first error ends the recording and is logged.
"""

import atexit
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers.io_struct import BatchTokenizedGenerateReqInput, TokenizedGenerateReqInput

from tokencake_sglang.agents.events import AnyEvent, Signal
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.config import ConfigError, TokencakeConfig
from tokencake_sglang.replay.recorder import Recorder
from tokencake_sglang.replay.workload import Header
from tokencake_sglang.signals.tagging import PARAMS_KEY

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import ReqState

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 64
"""Where a page is smaller than ``SMALLEST_BLOCK_TOKENS``."""
SMALLEST_BLOCK_TOKENS = 16
QUEUED_TOKENS_MAX = 32 << 20
"""Above it requests are left out: the thread has fallen behind, and a token takes eight bytes."""
CLOSE_TIMEOUT_S = 30.0


def check_record(config: TokencakeConfig) -> None:
    """Looks at what can be wrong with the file before the model is loaded.

    Raises:
        ConfigError: it cannot be written, or not as it is asked for.
    """
    if config.record is None:
        return
    path = Path(config.record)
    if path.suffix == ".gz":
        raise ConfigError(
            f"--tokencake-record: cannot write {config.record!r}: a recording has to be readable "
            "after a crash, which a compressed one is not; name it .jsonl and compress it afterwards"
        )
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(
            f"--tokencake-record: cannot write {config.record!r}: expected a new file in a folder "
            "that can be written"
        )


def block_size(page_size: int) -> int:
    return page_size if page_size >= SMALLEST_BLOCK_TOKENS else BLOCK_TOKENS


class Recording:
    """One replay file while it is being written.

    Args:
        clock: seconds; the same that stamps SGLang's request states.

    Raises:
        ConfigError: the file exists, or cannot be written.
    """

    def __init__(
        self,
        path: str,
        *,
        page_size: int,
        model: str,
        agent_timeout_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.path = path
        self._clock = clock
        header = Header(
            name=Path(path).stem,
            source="recorded by tokencake-sglang from a live server",
            licence="unspecified",
            block_size=block_size(page_size),
            options={"model": Path(model).name, "page_size": page_size},
        )
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._write(msgspec.json.encode(header) + b"\n")
        except FileExistsError:
            raise ConfigError(
                f"--tokencake-record: {path!r} exists; name a new file, or remove that one"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"--tokencake-record: cannot write {path!r}: {error.strerror}"
            ) from None
        assert header.block_size is not None
        self._recorder = Recorder(
            self._write,
            block_size=header.block_size,
            key=secrets.token_bytes(32),
            agent_timeout_s=agent_timeout_s,
        )
        self._queue: queue.SimpleQueue[tuple[int, Callable[[], None] | None]] = queue.SimpleQueue()
        self._queued_tokens = self._taken_tokens = 0
        self._left_out = 0
        self._failed = self._closed = False
        self._thread = threading.Thread(target=self._work, name="tokencake-record", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    # -- what the hooks call, on the event loop -------------------------------------------------

    def dispatched(self, message: Any, states: "dict[str, ReqState]") -> None:
        """A message goes to the scheduler. Never raises."""
        if self._failed or self._closed:
            return
        try:
            if isinstance(message, TokenizedGenerateReqInput):
                self._begin(message, states)
            elif isinstance(message, BatchTokenizedGenerateReqInput):
                for request in message.batch:
                    self._begin(request, states)
        except Exception as error:  # noqa: BLE001 - no request fails for it
            self._fail(error)

    async def answered(
        self, answers: AsyncIterator[Any], rid: str, state: "ReqState"
    ) -> AsyncIterator[Any]:
        """Passes a request's answers on and notes how it ends."""
        finished = False
        try:
            async for answer in answers:
                # The caller may never ask again once it has the last one.
                if not finished and (reason := _finish_reason(answer)) is not None:
                    finished = True
                    self._end(rid, state, answer, aborted=reason.get("type") == "abort")
                yield answer
        finally:
            if not finished:
                self._end(rid, state, None, aborted=True)

    def event(self, event: AnyEvent) -> None:
        """An event was accepted; only signals say anything here. Never raises."""
        if isinstance(event, Signal):
            now_s = self._clock()
            self._put(0, lambda: self._recorder.signal(event, now_s))

    def snapshot(self) -> dict[str, Any]:
        """For the status: the file, and what went into it."""
        counts = dict(self._recorder.counts)
        state = "failed" if self._failed else "closed" if self._closed else "recording"
        return {"file": self.path, "state": state, "fell_behind": self._left_out, **counts}

    def close(self) -> None:
        """Writes what is left and closes the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        now_s = self._clock()
        self._queue.put((0, lambda: self._recorder.close(now_s)))
        self._queue.put((0, None))
        self._thread.join(CLOSE_TIMEOUT_S)
        logger.info("tokencake: the recording is closed: %s", self.snapshot())

    # -- into the queue -------------------------------------------------------------------------

    def _begin(self, request: TokenizedGenerateReqInput, states: "dict[str, ReqState]") -> None:
        rid = request.rid
        if rid is None or rid.startswith(HEALTH_CHECK_RID_PREFIX):
            return
        prompt = request.input_ids
        if not prompt or request.session_params is not None:
            self._left_out_as("unsupported")
            return
        if self._queued_tokens - self._taken_tokens > QUEUED_TOKENS_MAX:
            self._left_out += 1
            return
        state = states.get(rid)
        now_s = self._clock()
        # Tokenising is the server's time, not the client's.
        began_s = min(state.time_stats.created_time or now_s, now_s) if state is not None else now_s
        tag, namespace = _tag(request), _namespace(request)
        self._put(len(prompt), lambda: self._recorder.begin(rid, tag, prompt, began_s, namespace))

    def _end(self, rid: str, state: "ReqState", answer: Any, aborted: bool) -> None:
        if self._failed or self._closed or rid.startswith(HEALTH_CHECK_RID_PREFIX):
            return
        try:
            now_s = self._clock()
            if aborted:
                self._put(0, lambda: self._recorder.fail(rid, now_s))
                return
            output = _output(state, answer)
            tokens = 0 if isinstance(output, int) else len(output)
            self._put(tokens, lambda: self._recorder.end(rid, output, now_s))
        except Exception as error:  # noqa: BLE001 - no request fails for it
            self._fail(error)

    def _left_out_as(self, why: str) -> None:
        def count() -> None:
            self._recorder.counts[why] += 1

        self._put(0, count)

    def _put(self, tokens: int, action: Callable[[], None]) -> None:
        if not (self._failed or self._closed):
            self._queued_tokens += tokens
            self._queue.put((tokens, action))

    # -- out of the queue, on the thread --------------------------------------------------------

    def _work(self) -> None:
        while True:
            tokens, action = self._queue.get()
            self._taken_tokens += tokens
            if action is None:
                os.close(self._file)
                return
            if not self._failed:
                try:
                    action()
                except Exception as error:  # noqa: BLE001 - no request fails for it
                    self._fail(error)

    def _write(self, lines: bytes) -> None:
        """Without a buffer: what is written survives the process."""
        while lines:
            lines = lines[os.write(self._file, lines) :]

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            logger.error("tokencake: recording to %s ends here: %r", self.path, error)


def _finish_reason(answer: Any) -> dict[str, Any] | None:
    meta = answer.get("meta_info") if isinstance(answer, dict) else None
    if meta is None and isinstance(answer, list) and answer and isinstance(answer[0], dict):
        meta = answer[0].get("meta_info")  # a beam search's answers
    reason = meta.get("finish_reason") if meta is not None else None
    if reason is None:
        return None
    return reason if isinstance(reason, dict) else {"type": reason}


def _output(state: "ReqState", answer: Any) -> Sequence[int] | int:
    """The tokens, or how many there are where the main process does not get them."""
    meta = answer.get("meta_info", {}) if isinstance(answer, dict) else answer[0]["meta_info"]
    count = meta.get("completion_tokens") or 0
    output = state.output_ids
    return output if output and len(output) == count else int(count)


def _tag(request: TokenizedGenerateReqInput) -> AgentTag | None:
    custom_params = request.sampling_params.custom_params
    tag = custom_params.get(PARAMS_KEY) if custom_params else None
    return AgentTag(**tag) if tag is not None else None


def _namespace(request: TokenizedGenerateReqInput) -> str:
    """What keeps equal tokens from having equal KV."""
    if request.mm_inputs is not None or request.input_embeds is not None:
        return f"unshared/{request.rid}"
    parts = (request.lora_id, request.extra_key, request.cache_salt)
    return repr(parts) if any(parts) else ""
