"""Makes the committed files of tool calls from the whole data sets.

python -m benchmarks.durations.extract
"""

import gzip
import itertools
import json
import re
from collections.abc import Iterator

from benchmarks.durations.traces import MINISWE, WEKA, ToolCall, digest, write
from benchmarks.workloads import claude_code
from benchmarks.workloads.datasets import WHOLE

COMMAND = re.compile(r"```(?:bash|sh)?\s*\n(.*?)```", re.DOTALL)


def weka() -> Iterator[ToolCall]:
    """Every gap between a call that stops for a tool and the next that brings a tool result."""
    for session in claude_code.sessions(WHOLE / "weka_claude_code/sessions.jsonl.gz"):
        waits: set[int] = set()
        main = 0
        for entry in session.requests:
            if entry.type != "subagent":
                main += 1
            elif entry.awaited:
                waits.add(main - 1)
        agents = [("main", 0.0, session.main)]
        agents += [(s.subagent_type, s.started_s, s.requests) for s in session.subagents]
        for agent_type, start_s, entries in agents:
            for index, (entry, following) in enumerate(itertools.pairwise(entries)):
                if entry.stop != "tool_use" or "tool_result" not in following.input_types:
                    continue
                if following.think_time is None:
                    continue
                waited = agent_type == "main" and index in waits
                yield ToolCall(
                    session.id.removeprefix("trace_"),
                    agent_type,
                    "subagent" if waited else "tool",
                    round(start_s + entry.end_s, 1),
                    max(following.think_time, 0.0),
                    entry.output_tokens,
                )


def miniswe() -> Iterator[ToolCall]:
    """From one request of a session to its next; of the command only its first word is kept."""
    with gzip.open(WHOLE / "lmcache_agent_trace/miniswe.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    begin = min(row["t_us"] for row in rows)
    calls = []
    sessions: dict[str, int] = {}
    for row, following in itertools.pairwise(rows):
        session = sessions.setdefault(row["session_id"], len(sessions))
        if row["session_id"] != following["session_id"]:
            continue
        command = COMMAND.search(row["output"])
        text = command[1].strip() if command else ""
        word = re.match(r"[\w.-]+", text)
        calls.append(
            ToolCall(
                str(session),
                "swe",
                word[0] if word else "none",
                (row["t_us"] - begin) / 1e6,
                (following["t_us"] - row["t_us"]) / 1e6,
                len(text),
                digest(text),
            )
        )
    yield from sorted(calls, key=lambda call: call.start_s)


if __name__ == "__main__":
    write(WEKA, weka())
    write(MINISWE, miniswe())
