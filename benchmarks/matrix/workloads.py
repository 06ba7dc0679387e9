"""A workload by name and parameters, so that a result can say what it was made from."""

import hashlib
from typing import Literal, TypeVar

import msgspec

from benchmarks.workloads import (
    agentinfer_swebench,
    chat,
    claude_code,
    datasets,
    fan_out,
    tokencake_dags,
)
from tokencake_sglang.replay import arrivals, tool_times
from tokencake_sglang.replay import workload as replay
from tokencake_sglang.replay.workload import Workload

_T = TypeVar("_T", int, float)

CLAUDE_CODE_SLICE = datasets.SLICES / "weka_claude_code_slice.jsonl.gz"
"""The committed slice, unless a cell asks for the whole data set: a result must not depend on who
has what."""


class WorkloadSpec(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """``source`` is a DAG's name, one of ``fan_out``'s, ``claude_code``, ``agentinfer_swebench`` or a replay file.

    ``applications`` is the number of copies of a DAG or of the SWE-bench set, or of sessions drawn
    at random; ``rate`` is applications per second; ``seed`` is of everything drawn at random;
    ``tool_noise`` is the gaussian scale on tool times. ``chat_rate`` requests per second of untagged chat run
    beside it for ``chat_s`` seconds.
    """

    source: str
    applications: int = 0
    arrivals: Literal["recorded", "equal", "poisson", "lanes"] = "recorded"
    rate: float | None = None
    lanes: int | None = None
    seed: int = 0
    tool_times: Literal["recorded", "poisson"] = "recorded"
    tool_noise: float = 0.0
    hints: Literal["recorded", "exact"] = "recorded"
    """What callers declare of their calls' lengths. Exact is the time drawn, noise included."""
    declared_tokens: int | None = None
    """What every request declares as its output's limit; None: exactly its output's length."""
    max_prompt_tokens: int | None = None
    max_calls: int | None = None
    max_gap_s: float | None = None
    whole: bool = False
    """Of ``claude_code``: the whole data set instead of the committed slice."""
    chat_rate: float = 0.0
    chat_s: float = 0.0
    unmarked: bool = False
    """Whether no agent is marked critical, whatever the source says."""
    tenants: str = ""
    """Names with commas between them, dealt out to the applications in turn; empty: none."""
    beside: int = 0
    """So many applications of ``BESIDE`` run beside the rest, of the tenant ``LIGHT``."""
    beside_rate: float | None = None
    """Of these a second; they come at random."""
    beside_from_s: float = 0.0
    """When the first of these comes."""


BESIDE, LIGHT = "small", "light"


def is_available(spec: WorkloadSpec) -> bool:
    """Whether the data that it is made of are here: a whole data set is in no clean clone."""
    return not spec.whole or claude_code.DATA != CLAUDE_CODE_SLICE


def build(spec: WorkloadSpec) -> Workload:
    """The workload, the same requests every time.

    Raises:
        ValueError: naming the field that does not fit.
    """
    workload = _source(spec)
    if spec.arrivals == "lanes":
        workload = arrivals.lanes(workload, _given("lanes", spec.lanes))
    elif spec.arrivals == "equal":
        workload = arrivals.equal_spacing(workload, _given("rate", spec.rate))
    elif spec.arrivals == "poisson":
        workload = arrivals.poisson(workload, _given("rate", spec.rate), spec.seed)
    if spec.tool_times == "poisson":
        workload = tool_times.with_poisson_tools(workload, spec.seed)
    if spec.tool_noise:
        workload = tool_times.with_noise(workload, spec.seed, spec.tool_noise)
    if spec.hints == "exact":
        workload = tool_times.with_exact_hints(workload)
    if spec.unmarked:
        workload = workload.map(lambda r: msgspec.structs.replace(r, critical=False), {})
    if spec.tenants:
        workload = arrivals.with_tenants(workload, spec.tenants.split(","))
    if spec.beside:
        few = arrivals.replicate(fan_out.load(BESIDE), spec.beside)
        few = arrivals.poisson(few, _given("beside_rate", spec.beside_rate), spec.seed)
        few = arrivals.with_tenants(arrivals.later(few, spec.beside_from_s), [LIGHT])
        workload = arrivals.merge(f"{workload.name}+{BESIDE}", [workload, few])
    if spec.chat_rate:
        background = chat.generate(rate=spec.chat_rate, duration_s=spec.chat_s, seed=spec.seed)
        workload = arrivals.merge(f"{workload.name}+chat", [workload, background])
    return workload


def _source(spec: WorkloadSpec) -> Workload:
    if spec.source in tokencake_dags.APPLICATIONS:
        return arrivals.replicate(
            tokencake_dags.load(spec.source), _given("applications", spec.applications or None)
        )
    if spec.source in fan_out.APPLICATIONS:
        return arrivals.replicate(
            fan_out.load(spec.source), _given("applications", spec.applications or None)
        )
    if spec.source == "claude_code":
        if not is_available(spec):
            raise ValueError("whole: the data set does not lie beside the checkout, in ../shared")
        return claude_code.load(
            claude_code.DATA if spec.whole else CLAUDE_CODE_SLICE,
            count=spec.applications or None,
            seed=spec.seed if spec.applications else None,
            max_prompt_tokens=spec.max_prompt_tokens,
            max_calls=spec.max_calls,
            max_gap_s=spec.max_gap_s,
        )
    if spec.source == "agentinfer_swebench":
        return arrivals.replicate(agentinfer_swebench.load(), max(spec.applications, 1))
    if spec.source.endswith((".jsonl", ".jsonl.gz")):
        return replay.read(spec.source)
    known = (
        *tokencake_dags.APPLICATIONS,
        *fan_out.APPLICATIONS,
        "claude_code",
        "agentinfer_swebench",
    )
    raise ValueError(f"source: expected one of {known} or a replay file, got {spec.source!r}")


def _given(name: str, value: _T | None) -> _T:
    if value is None:
        raise ValueError(f"{name}: these arrivals or this source need a value")
    return value


def digest(workload: Workload) -> str:
    """Equal for equal requests: two systems with equal digests were asked the same."""
    encoder = msgspec.json.Encoder()
    total = hashlib.sha256()
    for request in workload.requests:
        total.update(encoder.encode(request) + b"\n")
    return total.hexdigest()[:16]
