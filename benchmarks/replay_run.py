"""Replays one workload through one system in virtual time and prints what came of it.

    python -m benchmarks.replay_run --dag code_writer --rate 0.2 --system hicache-lpm

A first, single-run form: one process, one system, one workload, figures as JSON.
"""

import argparse
import json
import time

import msgspec

from benchmarks.workloads import tokencake_dags
from tokencake_sglang.replay.arrivals import equal_spacing, replicate
from tokencake_sglang.replay.driver import Replay
from tokencake_sglang.replay.figures import figures
from tokencake_sglang.replay.machine import machine_figures
from tokencake_sglang.replay.systems import SYSTEMS
from tokencake_sglang.replay.workload import read
from tokencake_sglang.timewarp.cost import CostModel
from tokencake_sglang.timewarp.engine import TimeWarp
from tokencake_sglang.timewarp.hardware import load_hardware_profile
from tokencake_sglang.timewarp.models import load_model_profile, model_profile

QWEN_14B = {
    # Qwen2.5-14B's config.json, the fields that cost something.
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dag", choices=["code_writer", "deep_research"])
    source.add_argument(
        "--replay", metavar="FILE", help="a replay file (tokencake_sglang/replay/FORMAT.md)"
    )
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
    system = SYSTEMS[arguments.system]
    warp = TimeWarp(
        CostModel(model, load_hardware_profile(arguments.hardware)),
        pool_tokens=arguments.pool_tokens,
        host_tokens=int(arguments.host_ratio * arguments.pool_tokens) if system.host_tier else 0,
        overlap=not arguments.no_overlap,
        flags=(*system.flags, *arguments.flags.split()),
    )
    replay = Replay(workload, warp, priorities=system.priorities)
    started_s = time.perf_counter()
    replay.run()
    real_s = time.perf_counter() - started_s
    result = {
        "arguments": vars(arguments),
        "figures": figures(replay),
        "machine": msgspec.to_builtins(machine_figures(replay, real_s)),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        with open(arguments.output, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
