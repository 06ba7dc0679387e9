from pathlib import Path

import pytest

from benchmarks.workloads import __main__ as command
from benchmarks.workloads import datasets
from tokencake_sglang.replay import workload as replay


@pytest.mark.parametrize(
    ("arguments", "requests"),
    [
        ("code_writer --applications 3 --rate 0.5", 81),
        ("deep_research --applications 2 --rate 1 --arrivals poisson --seed 1", 64),
        (f"claude_code --data {datasets.SLICES}/weka_claude_code_slice.jsonl.gz --count 3", 622),
        ("uneven --applications 2 --rate 1", 64),
        ("agentinfer_swebench --lanes 4", 596),
        ("chat --rate 2 --duration-s 30 --seed 1", 69),
    ],
)
def test_a_workload_is_written_and_described(
    arguments: str, requests: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "replay.jsonl.gz"
    command.main([*arguments.split(), "--output", str(path)])
    assert len(replay.read(path).requests) == requests
    assert f"\nrequests: {requests}\n" in capsys.readouterr().out


def test_what_was_drawn_is_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "replay.jsonl"
    options = "--rate 1 --arrivals poisson --tool-times poisson --tool-noise 0.25 --seed 7"
    command.main(["code_writer", *options.split(), "--output", str(path)])
    assert replay.read_header(path).options == {
        "initial_tokens": 4606,
        "role_tokens": "per agent type",
        "tool_result_tokens": "per tool",
        "template_of": "agent_type",
        "copies": 24,
        "arrivals": "poisson",
        "rate": 1.0,
        "arrival_seed": 7,
        "tool_times": "poisson",
        "tool_noise": 0.25,
        "tool_seed": 7,
    }


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="claude_code: select: .* has no session nobody"):
        command.main(["claude_code", "--sessions", "nobody", "--output", str(tmp_path / "x.jsonl")])
