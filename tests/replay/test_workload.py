from pathlib import Path
from typing import Any

import pytest

from tests.replay.builders import HEADER, request, workload
from tokencake_sglang.replay import workload as replay
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import ReplayError, ToolCall, Workload

EVERYTHING = workload(
    request("a", tool_s=1.5, critical=True, agent_type="planner"),
    request("b", spawned_by="a", delay_s=0.25),
    request("c", after="a", call=ToolCall(tool="subagent", wait_s=0.0, until=("b",))),
    request("d", after="c b", output=(Span("x", 0, 1), Span("y", 3, 4))),
    request("chat", application=None, arrival_s=2.0),
)


@pytest.mark.parametrize("name", ["replay.jsonl", "replay.jsonl.gz"])
def test_a_written_workload_reads_back_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert replay.save(path, EVERYTHING) == 5
    again = replay.read(path)
    assert again.header == EVERYTHING.header
    assert again.requests == EVERYTHING.requests
    assert list(replay.stream(path)) == list(EVERYTHING.requests)


def test_the_same_workload_gives_the_same_compressed_bytes(tmp_path: Path) -> None:
    for name in ("first.jsonl.gz", "second.jsonl.gz"):
        replay.save(tmp_path / name, EVERYTHING)
    assert (tmp_path / "first.jsonl.gz").read_bytes() == (tmp_path / "second.jsonl.gz").read_bytes()


def test_a_line_holds_spans_as_arrays_and_leaves_out_what_is_default(tmp_path: Path) -> None:
    path = tmp_path / "replay.jsonl"
    replay.save(path, workload(request("a")))
    assert path.read_text().splitlines()[1] == (
        '{"request_id":"a","application":"app","agent":"a","arrival_s":0.0,'
        '"prompt":[["app/context",0,10]],"output":[["a/output",0,5]]}'
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"request_id":"a"}', r"replay.jsonl:2: .*`prompt`"),
        (b"{not json", r"replay.jsonl:2: .*malformed"),
        (b'{"request_id":"a","colour":1,"prompt":[],"output":[]}', r":2: .*`colour`"),
        (b'{"request_id":"a","prompt":[["x",0]],"output":[]}', r":2: .*`\$.prompt\[0\]`"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "replay.jsonl"
    replay.save(path, workload())
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ReplayError, match=message):
        replay.read(path)


def test_another_format_or_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "replay.jsonl"
    path.write_text('{"format":"mooncake","name":"x","source":"","licence":""}\n')
    with pytest.raises(ReplayError, match="replay.jsonl:1: .*mooncake"):
        replay.read(path)
    path.write_text(
        '{"format":"tokencake-replay","version":9,"name":"x","source":"","licence":""}\n'
    )
    with pytest.raises(ReplayError, match="replay.jsonl: version: .* 1, got 9"):
        replay.read(path)


def test_a_cut_off_compressed_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "replay.jsonl.gz"
    replay.save(path, EVERYTHING)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EOFError):
        replay.read(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"after": "nobody"}, "waits for 'nobody', which is not in the workload"),
        ({"spawned_by": "nobody"}, "waits for 'nobody'"),
        ({"call": ToolCall(tool="t", wait_s=0.0, until=("nobody",))}, "waits for 'nobody'"),
        ({"arrival_s": None}, "arrival_s: expected seconds"),
        ({"after": "root", "arrival_s": 1.0}, "arrival_s: expected null"),
        ({"arrival_s": -1.0}, "arrival_s: .*got -1.0"),
        ({"delay_s": float("nan")}, "delay_s: .*got nan"),
        ({"tool_s": -0.5}, "call.wait_s: .*got -0.5"),
        ({"call": ToolCall(tool="t", wait_s=0.0, declared_s=-2.0)}, "call.declared_s: .*got -2.0"),
        ({"call": ToolCall(tool="", wait_s=0.0)}, "call.tool: expected a name"),
        ({"prompt": ()}, "prompt: expected at least one span"),
        ({"output": ()}, "output: expected at least one span"),
        ({"prompt": (Span("x", 0, -3),)}, r"prompt: .*got \['x', 0, -3\]"),
        ({"output": (Span("x", -1, 3),)}, r"output: .*got \['x', -1, 3\]"),
        ({"after": "root root"}, "wait_for: expected every request once"),
        ({"agent": None}, "application and agent: expected both"),
    ],
)
def test_a_request_that_cannot_be_replayed_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ReplayError, match=f"request 'bad': .*{message}"):
        workload(request("root"), request("bad", **fields))


def test_a_request_id_is_used_once() -> None:
    with pytest.raises(ReplayError, match="'a': request_id is used 2 times"):
        workload(request("a"), request("a"))


@pytest.mark.parametrize(
    "requests",
    [
        [request("b", after="c"), request("c", after="b")],
        [request("b", after="b")],
        # The call waits for a request that waits for the call: it should have been spawned.
        [
            request("b", after="root", call=ToolCall(tool="t", wait_s=0.0, until=("c",))),
            request("c", after="b"),
        ],
    ],
)
def test_requests_that_wait_for_each_other_are_named(requests: list[Any]) -> None:
    with pytest.raises(ReplayError, match="wait for each other: .*b"):
        workload(request("root"), *requests)


def test_totals_and_groups() -> None:
    assert EVERYTHING.prompt_tokens == 50
    assert EVERYTHING.output_tokens == 25
    assert {name: len(group) for name, group in EVERYTHING.applications.items()} == {
        "app": 4,
        "chat": 1,
    }
    assert EVERYTHING.by_id["d"].output_length == 5
    assert Workload(HEADER, ()).requests == ()
