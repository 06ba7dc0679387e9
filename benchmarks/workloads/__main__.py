"""Writes a workload as a replay file and prints what it amounts to.

python -m benchmarks.workloads code_writer --applications 24 --rate 1.0 --output code_writer.jsonl
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.workloads import agentinfer_swebench, chat, claude_code, fan_out, tokencake_dags
from tokencake_sglang.replay import arrivals, tool_times
from tokencake_sglang.replay import workload as replay
from tokencake_sglang.replay.summary import summarize
from tokencake_sglang.replay.workload import Workload


def build(args: argparse.Namespace) -> Workload:
    if args.name in tokencake_dags.APPLICATIONS:
        workload = arrivals.replicate(tokencake_dags.load(args.name), args.applications)
    elif args.name in fan_out.APPLICATIONS:
        workload = arrivals.replicate(fan_out.load(args.name), args.applications)
    elif args.name == "claude_code":
        workload = claude_code.load(
            args.data or claude_code.DATA,
            select=args.sessions,
            count=args.count,
            seed=args.seed,
            max_prompt_tokens=args.max_prompt_tokens,
            max_calls=args.max_calls,
            max_gap_s=args.max_gap_s,
        )
    elif args.name == "agentinfer_swebench":
        workload = agentinfer_swebench.load(args.data or agentinfer_swebench.DATA)
    else:
        workload = chat.generate(rate=args.rate, duration_s=args.duration_s, seed=args.seed or 0)
    if args.name != "chat":
        if args.lanes is not None:
            workload = arrivals.lanes(workload, args.lanes)
        elif args.rate is not None and args.arrivals == "poisson":
            workload = arrivals.poisson(workload, args.rate, args.seed or 0)
        elif args.rate is not None:
            workload = arrivals.equal_spacing(workload, args.rate)
        if args.tool_times == "poisson":
            workload = tool_times.with_poisson_tools(workload, args.seed or 0)
        if args.tool_noise:
            workload = tool_times.with_noise(workload, args.seed or 0, args.tool_noise)
    return workload


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m benchmarks.workloads", description=__doc__)
    names = main.add_subparsers(dest="name", required=True)
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--output", type=Path, required=True, help="ends in .gz: compressed")
    every.add_argument("--seed", type=int)
    agents = argparse.ArgumentParser(add_help=False)
    start = agents.add_mutually_exclusive_group()
    start.add_argument("--rate", type=float, help="applications a second")
    start.add_argument("--lanes", type=int, help="applications under way at once")
    agents.add_argument("--arrivals", choices=["equal", "poisson"], default="equal")
    agents.add_argument("--tool-times", choices=["recorded", "poisson"], default="recorded")
    agents.add_argument("--tool-noise", type=float, default=0.0, help="gaussian scale on tool time")
    for name in (*tokencake_dags.APPLICATIONS, *fan_out.APPLICATIONS):
        graph = names.add_parser(name, parents=[every, agents])
        graph.add_argument("--applications", type=int, default=24)
    sessions = names.add_parser("claude_code", parents=[every, agents])
    sessions.add_argument("--data", type=Path, help=f"default: {claude_code.DATA}")
    sessions.add_argument("--sessions", nargs="+", metavar="ID")
    sessions.add_argument("--count", type=int, help="sessions; with --seed chosen at random")
    sessions.add_argument("--max-prompt-tokens", type=int)
    sessions.add_argument("--max-calls", type=int, help="of a session's main agent")
    sessions.add_argument("--max-gap-s", type=float, help="shortens longer pauses and tool calls")
    swebench = names.add_parser("agentinfer_swebench", parents=[every, agents])
    swebench.add_argument("--data", type=Path, help=f"default: {agentinfer_swebench.DATA}")
    background = names.add_parser("chat", parents=[every])
    background.add_argument("--rate", type=float, default=1.0, help="requests a second")
    background.add_argument("--duration-s", type=float, default=600.0)
    return main


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    try:
        workload = build(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{args.name}: {error}") from error
    replay.save(args.output, workload)
    for field, value in msgspec.structs.asdict(summarize(workload)).items():
        print(f"{field}: {value:,}" if isinstance(value, int | float) else f"{field}: {value}")


if __name__ == "__main__":
    main()
