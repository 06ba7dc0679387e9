"""What a run was like, seen from the client: one record a turn, and the figures made of them."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.interpreter import StreamExecutor
from sglang.lang.ir import SglSamplingParams

from tokencake_sglang.frontend.endpoint import TokencakeEndpoint
from tokencake_sglang.frontend.executor import agent_of


@dataclass(frozen=True, slots=True)
class Turn:
    """One generation of one agent. Seconds are on the client's ``time.monotonic``.

    ``device_tokens`` and ``host_tokens`` are the prompt tokens that the server found in its KV pool
    and in its host tier when it admitted the request.
    """

    application: str
    agent: str
    index: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    started_s: float
    ttft_s: float
    finished_s: float
    device_tokens: int
    host_tokens: int

    @property
    def name(self) -> str:
        return f"{self.application} {self.agent} turn {self.index}"

    @property
    def returning(self) -> bool:
        """Whether the agent comes back, from a tool call."""
        return self.index > 0


@dataclass(frozen=True, slots=True)
class Run:
    """One run against one server. ``status`` is the extension's; None for a stock server."""

    label: str
    application_s: list[float]
    turns: list[Turn]
    status: dict[str, Any] | None
    server_start_s: float
    server_cpu_s: float
    others_cpus: float
    """How many processors other programs kept busy meanwhile, on average: they make times longer."""


class NoSignals:
    """Takes the place of the signals' client where no server wants them."""

    def call_start(self, **_: Any) -> None:
        pass

    def call_finish(self, **_: Any) -> None:
        pass

    def agent_finish(self, *_: Any) -> None:
        pass


class MeasuringEndpoint(TokencakeEndpoint):
    """Records every turn. For a stock server it sends exactly what ``RuntimeEndpoint`` sends.

    Args:
        encode: the model's tokenizer, for the ids of prompts.
        aware: whether requests carry tags and tool calls are signalled.
        on_turn: called after each turn, in the thread that ran it.
    """

    def __init__(
        self,
        base_url: str,
        encode: Callable[[str], list[int]],
        *,
        aware: bool,
        on_turn: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        signals = None if aware else NoSignals()
        super().__init__(base_url, chat_template_name="chatml", signals=signals)
        self.turns: list[Turn] = []
        self._encode = encode
        self._aware = aware
        self._on_turn = on_turn
        self._next_index: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def generate(
        self, s: StreamExecutor, sampling_params: SglSamplingParams
    ) -> tuple[str, dict[str, Any]]:
        """Streams, to see the first token."""
        prompt = s.text_
        started_s = time.monotonic()
        ttft_s = 0.0
        pieces = []
        meta_info: dict[str, Any] = {}
        for piece, latest in self.generate_stream(s, sampling_params):
            ttft_s = ttft_s or time.monotonic() - started_s
            pieces.append(piece)
            meta_info = latest
        self._record(s, prompt, meta_info, started_s, ttft_s)
        return "".join(pieces), meta_info

    def generate_stream(
        self, s: StreamExecutor, sampling_params: SglSamplingParams
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._aware:
            return super().generate_stream(s, sampling_params)
        return RuntimeEndpoint.generate_stream(self, s, sampling_params)

    def _generate_http_request(self, s: StreamExecutor, data: dict[str, Any]) -> Any:
        if self._aware:
            return super()._generate_http_request(s, data)
        return RuntimeEndpoint._generate_http_request(self, s, data)

    def _record(
        self,
        s: StreamExecutor,
        prompt: str,
        meta_info: dict[str, Any],
        started_s: float,
        ttft_s: float,
    ) -> None:
        finished_s = time.monotonic()
        agent = agent_of(s)
        assert agent is not None, "every program of the demo runs as an agent"
        prompt_ids = self._encode(prompt)
        if len(prompt_ids) != meta_info["prompt_tokens"]:
            raise RuntimeError(
                f"{len(prompt_ids)} prompt tokens here, {meta_info['prompt_tokens']} on the server: "
                "give both the same tokenizer (--tokenizer-path)"
            )
        tiers = meta_info.get("cached_tokens_details") or {}
        key = (agent.application, agent.name)
        with self._lock:
            index = self._next_index.get(key, 0)
            self._next_index[key] = index + 1
            turn = Turn(
                application=agent.application,
                agent=agent.name,
                index=index,
                prompt_ids=tuple(prompt_ids),
                output_ids=tuple(token for _, token, *_ in meta_info["output_token_logprobs"]),
                started_s=started_s,
                ttft_s=ttft_s,
                finished_s=finished_s,
                device_tokens=tiers.get("device", 0),
                host_tokens=tiers.get("host", 0),
            )
            self.turns.append(turn)
        self._on_turn(turn)


# -- figures --------------------------------------------------------------------------------------


def computed_before_tokens(turns: Sequence[Turn]) -> list[int]:
    """For each turn, how long a prefix of its prompt had been computed when it was sent.

    That is the longest common prefix with what any turn that had *finished* by then had computed:
    its prompt and its output but for the last token, which is never fed back. At most all but one
    of the prompt's tokens, since the last one is always computed. Turns still running do not count,
    so the figure never asks more of a server than a perfect cache could give.
    """
    known = []
    for turn in turns:
        earlier = [other for other in turns if other.finished_s <= turn.started_s]
        longest = max(
            (
                _common_prefix(turn.prompt_ids, other.prompt_ids + other.output_ids[:-1])
                for other in earlier
            ),
            default=0,
        )
        known.append(min(longest, len(turn.prompt_ids) - 1))
    return known


def figures(run: Run) -> dict[str, Any]:
    """The figures of one run; seconds and tokens.

    ``recomputed_tokens``: prompt tokens minus those found in a cache tier minus those never
    computed before (see :func:`computed_before_tokens`), summed over turns, none below zero.
    ``*_hit_rate``: the share of ``computed_before`` tokens found on the device, or on the host; both
    can include tokens of turns that still ran, so together they can exceed 1 slightly.
    """
    turns = run.turns
    known = computed_before_tokens(turns)
    recomputed = sum(
        max(0, before - turn.device_tokens - turn.host_tokens)
        for turn, before in zip(turns, known, strict=True)
    )
    prompt = sum(len(turn.prompt_ids) for turn in turns)
    device = sum(turn.device_tokens for turn in turns)
    host = sum(turn.host_tokens for turn in turns)
    return {
        "application_s": {
            "each": run.application_s,
            "mean": statistics.fmean(run.application_s),
            "max": max(run.application_s),
        },
        "makespan_s": max(turn.finished_s for turn in turns) - min(t.started_s for t in turns),
        "returning_ttft_s": _spread([turn.ttft_s for turn in turns if turn.returning]),
        "first_ttft_s": _spread([turn.ttft_s for turn in turns if not turn.returning]),
        "prompt_tokens": prompt,
        "computed_before_tokens": sum(known),
        "device_hit_tokens": device,
        "host_hit_tokens": host,
        "device_hit_rate": device / max(1, sum(known)),
        "host_hit_rate": host / max(1, sum(known)),
        "prefilled_tokens": prompt - device - host,
        "recomputed_tokens": recomputed,
        "server_start_s": run.server_start_s,
        "server_cpu_s": run.server_cpu_s,
        "others_cpus": run.others_cpus,
        "extension": None if run.status is None else extension_figures(run.status),
    }


def extension_figures(status: dict[str, Any]) -> dict[str, Any]:
    """Counts and tokens of what the extension did, from ``GET /tokencake/status``, rank 0.

    ``decisions`` counts every one by ``action.reason``.
    """
    decisions = status["ranks"][0]["decisions"]
    counts, tokens = decisions["counts"], decisions["tokens"]

    def total(table: dict[str, int], action: str) -> int:
        return sum(number for name, number in table.items() if name.split(".")[0] == action)

    return {
        "insured_tokens": total(tokens, "insure"),
        "offloaded_tokens": total(tokens, "release"),
        "uploaded_tokens": total(tokens, "upload"),
        "returns_uploaded_in_time": counts.get("return.uploaded_in_time", 0),
        "returns_still_resident": counts.get("return.resident", 0),
        "returns_upload_late": counts.get("return.upload_late", 0),
        "returns_not_uploaded": counts.get("return.not_uploaded", 0),
        "returns_lost": counts.get("return.lost", 0),
        "decisions": counts,
    }


def differing_outputs(runs: Sequence[Run]) -> list[str]:
    """Turns whose prompt or output is not token by token that of the first run; none is best."""
    first = {turn.name: turn for turn in runs[0].turns}
    differences = []
    for run in runs[1:]:
        turns = {turn.name: turn for turn in run.turns}
        for name in sorted(first.keys() | turns.keys()):
            ours, theirs = first.get(name), turns.get(name)
            if ours is None or theirs is None:
                has = run.label if ours is None else runs[0].label
                differences.append(f"{name}: only in {has}")
            elif ours.prompt_ids != theirs.prompt_ids:
                differences.append(f"{name}: other prompt in {run.label}")
            elif ours.output_ids != theirs.output_ids:
                place = _common_prefix(ours.output_ids, theirs.output_ids)
                differences.append(
                    f"{name}: output token {place} is not that of {runs[0].label} in {run.label}"
                )
    return differences


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values),
        "p50": statistics.median(values),
        "max": max(values),
    }


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for place, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return place
    return min(len(a), len(b))
