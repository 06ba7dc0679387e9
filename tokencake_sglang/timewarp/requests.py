"""What a run is asked to serve, and what it sums up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tokencake_sglang.agents.identity import AgentTag

END_TOKEN = 2
"""Ends outputs that end by themselves. No prompt has it: workloads' tokens begin at 3."""


@dataclass(slots=True)
class Request:
    """One generation. Times are virtual seconds; token counts are SGLang's own.

    ``limit`` is the number of tokens that it declares as the most it may generate, where that is
    not the number that it will. It then ends by itself: its output's last token, and no other, is
    ``END_TOKEN``.
    """

    rid: str
    prompt: Sequence[int]
    output: Sequence[int]
    tag: AgentTag | None = None
    priority: int | None = None
    limit: int | None = None
    on_finish: Callable[["Request"], None] | None = None
    queued_s: float = 0.0
    admitted_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    device_hit_tokens: int = 0
    host_hit_tokens: int = 0
    prefilled_tokens: int = 0
    retractions: int = 0


@dataclass(slots=True)
class Totals:
    """Sums over a run."""

    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    forward_s: float = 0.0
    load_wait_s: float = 0.0
    retractions: int = 0
    output_tokens: int = 0
    finished: int = field(default=0)
