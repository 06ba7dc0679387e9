"""No schedule that is possible beats a bound: small workloads on a server that is as good as any."""

import random
from unittest import mock

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replay.builders import request, workload
from tests.replay.free_server import FreeServer
from tests.replay.test_bounds import COST
from tokencake_sglang.replay import machine_work
from tokencake_sglang.replay.bounds import bounds
from tokencake_sglang.replay.quantiles import mean, quantile
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Request, ToolCall, Workload
from tokencake_sglang.timewarp.cost import CostModel
from tokencake_sglang.timewarp.hardware import HardwareProfile
from tokencake_sglang.timewarp.models import ModelProfile

ROUNDING = 1 + 1e-9


@st.composite
def machines(draw: st.DrawFn) -> CostModel:
    """From those on which arithmetic is all to those on which traffic is."""
    model = ModelProfile(
        name="drawn",
        layers=1,
        kv_bytes_per_token=draw(st.integers(1, 10)),
        layer_flops_per_token=draw(st.floats(0.1, 3.0)),
        attention_flops_per_pair=draw(st.floats(0.0, 0.3)),
        layer_weight_bytes=draw(st.floats(0.0, 30.0)),
        head_flops=draw(st.floats(0.0, 3.0)),
        head_weight_bytes=0.0,
    )
    hardware = HardwareProfile(
        name="drawn",
        peak_flops=1.0,
        compute_efficiency=1.0,
        memory_bytes_per_s=draw(st.floats(1.0, 30.0)),
        memory_efficiency=1.0,
        memory_bytes=1e9,
        host_to_device_bytes_per_s=1.0,
        device_to_host_bytes_per_s=1.0,
        copy_latency_s=0.0,
        step_overhead_s=draw(st.floats(0.0, 2.0)),
    )
    return CostModel(model, hardware)


@st.composite
def applications(draw: st.DrawFn, name: str) -> list[Request]:
    """Requests that follow one another, run at once, or are spawned in calls that wait for them."""
    made: list[Request] = []
    for index in range(draw(st.integers(1, 4))):
        before = draw(st.sampled_from(made)) if made else None
        spawned = before is not None and before.call is None and draw(st.booleans())
        kind = draw(st.sampled_from(("anew", "continued", "again")))
        prompt = [Span("system", 0, draw(st.integers(1, 6))), Span(f"{name}/own", 0, 4)]
        if before is not None and kind != "anew":
            prompt = [*before.prompt, *before.output] if kind == "continued" else [*before.prompt]
        if draw(st.booleans()):
            prompt.append(Span(f"{name}/{index}", 0, draw(st.integers(1, 8))))
        fields: dict = {}
        if spawned:
            fields["spawned_by"] = before.request_id
        elif before is None:
            fields["arrival_s"] = draw(st.floats(0.0, 30.0))
        made.append(
            request(
                f"{name}/{index}",
                after=before.request_id if before is not None and not spawned else "",
                application=name,
                agent=f"{name}/{index}",
                prompt=tuple(prompt),
                output=(Span(f"{name}/{index}/output", 0, draw(st.integers(1, 6))),),
                tool_s=draw(st.none() | st.floats(0.0, 20.0)),
                delay_s=draw(st.floats(0.0, 5.0)),
                **fields,
            )
        )
    return [_waiting(r, made) for r in made]


def _waiting(parent: Request, others: list[Request]) -> Request:
    """Its call, if it has one, waits for those it spawned."""
    children = tuple(r.request_id for r in others if r.spawned_by == parent.request_id)
    if not children or parent.call is not None:
        return parent
    return msgspec.structs.replace(
        parent, call=ToolCall(tool="sub-agents", wait_s=1.0, until=children)
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    count = draw(st.integers(1, 4))
    return workload(*(r for i in range(count) for r in draw(applications(f"app{i}"))))


@settings(deadline=None, max_examples=150)
@given(
    workloads(),
    machines(),
    st.randoms(use_true_random=False),
    st.floats(0.0, 1.0),
    st.floats(1.0, 3.0),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_no_schedule_beats_the_bounds(
    run: Workload,
    cost: CostModel,
    generator: random.Random,
    eager: float,
    room: float,
    running: int,
    decode_steps: int,
) -> None:
    longest = max(r.prompt_length + r.output_length for r in run.requests)
    limits = {"pool_tokens": int(room * longest), "max_running_requests": running}
    with mock.patch.object(machine_work, "DECODE_STEPS", decode_steps):
        least = bounds(run, cost, **limits)
    loop = FreeServer(run, cost, **limits, random=generator, eager=eager).run()
    times_s = {name: loop.ended_s[name] - loop.started_s[name] for name in run.applications}
    assert least.end_to_end_mean_s <= mean(times_s.values()) * ROUNDING
    assert least.end_to_end_p95_s <= quantile(times_s.values(), 0.95) * ROUNDING
    assert least.makespan_s <= max(loop.ended_s.values()) * ROUNDING
    for name, seconds in times_s.items():
        assert least.application_s[name] <= seconds * ROUNDING


def test_a_crowd_comes_near_its_bounds() -> None:
    """Else it would say little that no schedule beats them."""
    run = workload(
        *(
            request(
                f"{i}/{k}",
                application=f"app{i}",
                after=f"{i}/{k - 1}" if k else "",
                prompt=(Span(f"{i}", 0, 30 * (k + 1)),),
                output=(Span(f"{i}/{k}", 0, 2),),
                tool_s=90.0,
            )
            for i in range(8)
            for k in range(3)
        )
    )
    limits = {"pool_tokens": 1000, "max_running_requests": 8}
    least = bounds(run, COST, **limits)
    assert least.parts.busy_dates_mean_s > least.parts.critical_path_mean_s
    assert least.parts.busy_dates_mean_s > least.parts.work_mean_s
    times_s = []
    for seed in range(20):
        generator = random.Random(seed)
        loop = FreeServer(run, COST, **limits, random=generator, eager=1.0, at_once=1).run()
        times_s.append(mean(loop.ended_s[name] - loop.started_s[name] for name in run.applications))
    assert least.end_to_end_mean_s <= min(times_s) < 1.3 * least.end_to_end_mean_s
