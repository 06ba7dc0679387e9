"""``tokencake replay``: what it takes, what it refuses, what it prints."""

import json
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.replay.builders import HEADER, request
from tokencake_sglang.command import COMMANDS, main
from tokencake_sglang.replay import command
from tokencake_sglang.replay.recorder import Recorder
from tokencake_sglang.replay.systems import SYSTEMS
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import write

GIVEN = ("--model-config", "qwen2.5-14b", "--hardware", "h200")


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    write(path, HEADER, [request("r0", tool_s=1.0), request("r1", after="r0")])
    return str(path)


def refusal(capsys, *arguments):
    assert main(["replay", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


# -- what it refuses --------------------------------------------------------------------------


def test_a_missing_file_is_named(capsys, tmp_path):
    path = str(tmp_path / "none.jsonl")
    assert refusal(capsys, path, *GIVEN) == f"replay: {path}: No such file or directory\n"


def test_a_bad_line_is_named(capsys, trace):
    with open(trace, "a") as file:
        file.write('{"request_id":"r2"}\n')
    assert f"{trace}:4: Object missing required field `prompt`" in refusal(capsys, trace, *GIVEN)


def test_a_trace_of_hashes_is_pointed_to_the_format(capsys, tmp_path):
    path = tmp_path / "mooncake.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 10, "output_length": 5, "hash_ids": [1]}\n')
    assert "Mooncake trace, which is not accepted" in (said := refusal(capsys, str(path), *GIVEN))
    assert "FORMAT.md" in said


def test_any_other_file_is_told_how_a_replay_file_begins(capsys, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text("{}\n")
    assert "begins with a header" in refusal(capsys, str(path), *GIVEN)


def test_a_trace_without_requests_is_refused(capsys, tmp_path):
    path = tmp_path / "empty.jsonl"
    write(path, HEADER, [])
    assert "there is no request in it" in refusal(capsys, str(path), *GIVEN)


def test_a_share_of_memory_above_one_is_refused(capsys, trace):
    said = refusal(capsys, trace, *GIVEN, "--mem-fraction-static", "85")
    assert "--mem-fraction-static: expected at most 1, got 85" in said


def test_a_request_longer_than_the_pool_is_named_with_its_length(capsys, trace, tmp_path):
    write(trace, HEADER, [request("r0"), request("long", prompt=(Span("a", 0, 9000),))])
    said = refusal(capsys, trace, *GIVEN, "--pool-tokens", "8192")
    assert "request 'long' has 9000 tokens of prompt and 5 of output, the pool 8192" in said
    assert "1 of 2 requests do not fit" in said


def test_an_unknown_system_is_answered_with_all_there_are(capsys, trace):
    said = refusal(capsys, trace, *GIVEN, "--system", "hicache", "best")
    assert "--system: no 'best'" in said
    assert all(f"\n  {name}: {system.what}" in said for name, system in SYSTEMS.items())


@pytest.mark.parametrize("option", ["--hardware", "--model-config"])
def test_an_unknown_machine_or_model_is_answered_with_those_there_are(capsys, trace, option):
    given = dict(zip(GIVEN[::2], GIVEN[1::2], strict=True)) | {option: "abacus"}
    said = refusal(capsys, trace, *(word for pair in given.items() for word in pair))
    assert f"{option}: " in said and "'abacus'; there are" in said


def test_a_model_larger_than_the_device_is_refused(capsys, trace):
    said = refusal(capsys, trace, *GIVEN, "--mem-fraction-static", "0.1")
    assert "leaves no room beside qwen2.5-14b's weights of 30 GB" in said


def test_a_number_that_makes_no_sense_is_refused(capsys, trace):
    with pytest.raises(SystemExit):
        main(["replay", trace, *GIVEN, "--pool-tokens", "0"])
    assert "--pool-tokens: expected a number above 0, got 0" in capsys.readouterr().err


# -- what it runs -----------------------------------------------------------------------------


def setting_of(monkeypatch, trace, *arguments):
    seen = []

    def run_all(_workload, setting, names, _jobs):
        seen.append((setting, names))
        return {name: {"error": "not run"} for name in names}

    monkeypatch.setattr(command, "_run_all", run_all)
    assert main(["replay", trace, *GIVEN, *arguments]) == 1
    return seen[0]


def test_by_default_stock_settings_and_the_extension_are_compared(monkeypatch, trace):
    setting, names = setting_of(monkeypatch, trace)
    assert names == ["hicache", "hicache-lpm", "tokencake"]
    # 141 GB of an H200 times 0.85, less 29.5 GB of weights, at 196,608 bytes a token.
    assert 440_000 < setting.pool_tokens < 480_000
    assert setting.pool_tokens % 16 == 0


def test_a_pool_that_is_given_is_taken_in_whole_pages(monkeypatch, trace):
    given = ("--pool-tokens", "1000", "--page-size", "64", "--no-overlap")
    setting, _ = setting_of(monkeypatch, trace, *given)
    assert (setting.pool_tokens, setting.overlap) == (960, False)


def test_flags_of_the_extension_only_reach_systems_that_have_it():
    flags = ("--tokencake-reserve-max", "0.1", "--schedule-conservativeness", "0.5")
    assert command.flags_for("hicache", flags) == ["--schedule-conservativeness", "0.5"]
    assert command.flags_for("tokencake", flags) == list(flags)


def test_a_system_that_fails_is_named_and_the_others_are_shown(monkeypatch, trace, capsys):
    def run_all(_workload, _setting, names, _jobs):
        outcomes = {name: {"figures": {"makespan_s": 2.0}, "real_s": 1.0} for name in names}
        return outcomes | {names[0]: {"error": "at 1.000 s 3 requests are left"}}

    monkeypatch.setattr(command, "_run_all", run_all)
    assert main(["replay", trace, *GIVEN]) == 1
    captured = capsys.readouterr()
    assert "makespan" in captured.out and "hicache-lpm" in captured.out
    assert captured.err == "replay: hicache failed: at 1.000 s 3 requests are left\n"


# -- the command itself -----------------------------------------------------------------------


def test_the_installed_command_is_this_one():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert pkgutil.resolve_name(project["scripts"]["tokencake"]) is main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: tokencake {name}" in capsys.readouterr().out


def test_without_a_subcommand_all_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)


@pytest.mark.slow
def test_a_recording_is_replayed_and_compared(tmp_path):
    """From what a server saw to the table: the whole way, but for the server."""
    from tests.replay.test_recorder import BLOCK, Recording

    recording = Recording()
    assert isinstance(recording.recorder, Recorder)
    for run in range(3):
        application = f"app{run}"
        prompt = [*range(600), *range(1000 * run, 1000 * run + 400)]
        for turn in range(4):
            began_s = run + 3.0 * turn
            output = [run, turn] * 20
            recording.turn("a", began_s, began_s + 1, prompt, output, application=application)
            recording.call("a", began_s + 1, began_s + 2.5, application=application)
            prompt = [*prompt, *output, *range(50)]
    recording.recorder.close(100.0)
    trace, figures = tmp_path / "trace.jsonl", tmp_path / "figures.json"
    header = {
        "format": "tokencake-replay",
        "name": "recorded",
        "source": "a test",
        "licence": "Apache-2.0",
        "block_size": BLOCK,
    }
    trace.write_bytes(json.dumps(header).encode() + b"\n" + b"".join(recording.lines))
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tokencake_sglang.command", "replay", str(trace), *GIVEN),
            *("--system", "hicache", "tokencake", "--pool-tokens", "4096", "--json", str(figures)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.splitlines()[0].split() == ["hicache", "tokencake"]
    assert "makespan" in ran.stdout
    assert ran.stdout.rstrip().endswith("(within 1% counts as equal).")
    assert "replay: 12 requests of 3 applications, 4096 KV slots" in ran.stderr
    systems = json.loads(figures.read_text())["systems"]
    assert list(systems) == ["hicache", "tokencake"]
    for system in systems.values():
        assert system["figures"]["output_tokens"] == 12 * 40
        # Every tool call of 1.5 s has its time, and so has the last one.
        assert system["figures"]["makespan_s"] > 4 * 1.5
