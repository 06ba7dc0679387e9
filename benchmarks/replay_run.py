"""Replays one workload through one system in virtual time and prints what came of it.

    python -m benchmarks.replay_run --dag code_writer --rate 0.2 --system hicache-lpm

A first, single-run form: one process, one system, one workload, figures as JSON.
"""

import argparse
import json
import statistics
import time
from typing import Any

from benchmarks.workloads import tokencake_dags
from tokencake_sglang.agents.events import ApplicationFinish, CallFinish, CallStart
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.replay.arrivals import equal_spacing, replicate
from tokencake_sglang.replay.closed_loop import CallReturned, ClosedLoop, Dispatch
from tokencake_sglang.replay.tokens import expand
from tokencake_sglang.replay.workload import Request as ReplayRequest
from tokencake_sglang.replay.workload import Workload, read
from tokencake_sglang.timewarp.cost import CostModel
from tokencake_sglang.timewarp.engine import VOCABULARY, Request, TimeWarp
from tokencake_sglang.timewarp.hardware import load_hardware_profile
from tokencake_sglang.timewarp.models import load_model_profile, model_profile

SYSTEMS: dict[str, tuple[bool, tuple[str, ...]]] = {
    # name: (with a host tier, flags)
    "stock": (False, ()),
    "stock-lpm": (False, ("--schedule-policy", "lpm")),
    "hicache": (True, ()),
    "hicache-lpm": (True, ("--schedule-policy", "lpm")),
    "hicache-dfs": (True, ("--schedule-policy", "dfs-weight")),
    "tokencake": (True, ("--enable-tokencake",)),
    "tokencake-lpm": (True, ("--enable-tokencake", "--schedule-policy", "lpm")),
    "tokencake-temporal": (True, ("--enable-tokencake", "--tokencake-spatial", "off")),
    "tokencake-spatial": (True, ("--enable-tokencake", "--tokencake-temporal", "off")),
}

QWEN_14B = {
    # Qwen2.5-14B's config.json, the fields that cost something.
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
}


class Replay:
    """Drives a TimeWarp through a workload's closed loop."""

    def __init__(self, workload: Workload, warp: TimeWarp) -> None:
        self.loop = ClosedLoop(workload)
        self.warp = warp
        self.returning: set[str] = set()
        self._open = {name: len(requests) for name, requests in workload.applications.items()}

    def run(self) -> None:
        self._arm()
        self.warp.run()
        assert self.loop.done, "the workload has not been replayed to its end"

    def _arm(self) -> None:
        """Comes back when the loop's next event is due."""
        if (at_s := self.loop.next_event_s) is not None:
            self.warp.call_at(at_s, self._advance)

    def _advance(self) -> None:
        for event in self.loop.pop_due(self.warp.clock.now_s):
            if isinstance(event, CallReturned):
                self._call_returned(event.request)
            elif isinstance(event, Dispatch):
                self._dispatch(event.request)
        self._arm()

    def _dispatch(self, request: ReplayRequest) -> None:
        if request.wait_for:
            self.returning.add(request.request_id)
        self.warp.submit(
            Request(
                request.request_id,
                expand(request.prompt, VOCABULARY),
                expand(request.output, VOCABULARY),
                tag=_tag(request),
                on_finish=lambda _done: self._finished(request),
            )
        )

    def _finished(self, request: ReplayRequest) -> None:
        self.loop.finish(request.request_id, self.warp.clock.now_s)
        if request.call is not None and request.agent is not None:
            self.warp.signal(
                CallStart(
                    agent=request.agent,
                    application=request.application,
                    call_id=request.request_id,
                    tool=request.call.tool,
                    predicted_s=request.call.declared_s,
                )
            )
        elif request.application is not None:
            self._settled(request.application)
        self._arm()

    def _call_returned(self, request: ReplayRequest) -> None:
        if request.agent is None or request.application is None:
            return
        self.warp.signal(
            CallFinish(
                agent=request.agent, application=request.application, call_id=request.request_id
            )
        )
        self._settled(request.application)

    def _settled(self, application: str) -> None:
        self._open[application] -= 1
        if self._open[application] == 0:
            self.warp.signal(ApplicationFinish(application=application))


def _tag(request: ReplayRequest) -> AgentTag | None:
    if request.agent is None:
        return None
    return AgentTag(
        agent=request.agent,
        application=request.application,
        agent_type=request.agent_type,
        critical=request.critical,
    )


def figures(replay: Replay) -> dict[str, Any]:
    """What a run is judged by; seconds are virtual, tokens are counts."""
    loop, warp = replay.loop, replay.warp
    end_to_end = [loop.ended_s[name] - loop.started_s[name] for name in loop.ended_s]
    first = [r.first_token_s - r.queued_s for r in warp.requests.values() if r.first_token_s]
    returning = [
        r.first_token_s - r.queued_s
        for r in warp.requests.values()
        if r.first_token_s and r.rid in replay.returning
    ]
    prompt = sum(len(r.prompt) for r in warp.requests.values())
    return {
        "applications": len(end_to_end),
        "end_to_end_mean_s": statistics.fmean(end_to_end),
        "end_to_end_p50_s": _quantile(end_to_end, 0.5),
        "end_to_end_p95_s": _quantile(end_to_end, 0.95),
        "makespan_s": max(loop.ended_s.values()),
        "first_token_p50_s": _quantile(first, 0.5),
        "first_token_p95_s": _quantile(first, 0.95),
        "first_token_returning_p50_s": _quantile(returning, 0.5),
        "first_token_returning_p95_s": _quantile(returning, 0.95),
        "prompt_tokens": prompt,
        "prefill_tokens": warp.totals.prefill_tokens,
        "device_hit_tokens": sum(r.device_hit_tokens for r in warp.requests.values()),
        "host_hit_tokens": sum(r.host_hit_tokens for r in warp.requests.values()),
        "output_tokens": warp.totals.output_tokens,
        "retractions": warp.totals.retractions,
        "steps": warp.totals.steps,
        "load_wait_s": warp.totals.load_wait_s,
    }


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dag", choices=["code_writer", "deep_research"])
    source.add_argument("--replay", metavar="FILE", help="a replay file (tokencake_sglang/replay/FORMAT.md)")
    parser.add_argument("--applications", type=int, default=24, help="copies of the DAG")
    parser.add_argument("--rate", type=float, default=0.2, help="applications per second")
    parser.add_argument("--system", choices=sorted(SYSTEMS), default="tokencake")
    parser.add_argument("--hardware", default="a800", help="profile name or .toml file")
    parser.add_argument("--model-config", metavar="FILE", help="default: Qwen2.5-14B")
    parser.add_argument("--pool-tokens", type=int, default=48_800)
    parser.add_argument("--host-ratio", type=float, default=10.0)
    parser.add_argument("--no-overlap", action="store_true", help="SGLang's normal loop")
    parser.add_argument("--flags", default="", help="further server flags, space-separated")
    parser.add_argument("--output", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.dag:
        workload = tokencake_dags.load(arguments.dag)
        workload = equal_spacing(replicate(workload, arguments.applications), arguments.rate)
    else:
        workload = read(arguments.replay)
    model = (
        load_model_profile(arguments.model_config)
        if arguments.model_config
        else model_profile(QWEN_14B, "Qwen2.5-14B")
    )
    host, flags = SYSTEMS[arguments.system]
    warp = TimeWarp(
        CostModel(model, load_hardware_profile(arguments.hardware)),
        pool_tokens=arguments.pool_tokens,
        host_tokens=int(arguments.host_ratio * arguments.pool_tokens) if host else 0,
        overlap=not arguments.no_overlap,
        flags=(*flags, *arguments.flags.split()),
    )
    replay = Replay(workload, warp)
    started_s = time.perf_counter()
    replay.run()
    result = {"arguments": vars(arguments), "figures": figures(replay)}
    result["real_s"] = time.perf_counter() - started_s
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        with open(arguments.output, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
