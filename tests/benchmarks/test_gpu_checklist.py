"""The GPU checklist, as far as a machine without one can run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_checklist
from benchmarks.gpu_checklist import CheckFailed, Setup, Verdict

ROOT = Path(__file__).parents[2]


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which it would use")
def test_without_a_gpu_it_ends_with_one_line_and_status_2(tmp_path):
    output = tmp_path / "result.json"
    ended = run("benchmarks.gpu_checklist", "--output", str(output))
    assert ended.returncode == 2
    assert ended.stdout.splitlines() == [
        "gpu_checklist: there is no GPU that torch can use; nothing was checked"
    ]
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform hides beside a GPU")
def test_on_a_cpu_the_checks_of_tokens_run_and_pass(tmp_path):
    output = tmp_path / "result.json"
    ended = run(
        "benchmarks.gpu_checklist",
        *("--device", "cpu", "--only", "race", "round-trips", "--output", str(output)),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(output.read_text())
    rows = [row for check in result["checks"].values() for row in check["rows"]]
    verdicts = {row["check"]: row["verdict"] for row in rows}
    assert verdicts == {
        "race, direct, during the last piece of 512": "PASS",
        "race, direct, during the last piece of 128": "PASS",
        "race, direct, during the first piece of 128": "PASS",
        "race, direct, guard switched off": "figure",
        "round trip, direct/layer_first, page 16": "PASS",
    }
    assert all(row["check"] in ended.stdout for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform hides beside a GPU")
def test_the_race_check_sees_a_race_where_there_is_one():
    """With copies as late as a copy stream can be: right with the guard, wrong without."""
    ended = run("tests.benchmarks.race_with_late_copies")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for kind in json.loads(ended.stdout.splitlines()[-1]):
        assert kind["guarded"]["wrong_outputs"] == 0
        if kind["arrival"] == "during the last piece":
            assert kind["guarded"]["overlapped"] == kind["guarded"]["trips"]
            assert kind["unguarded"]["wrong_outputs"] == kind["unguarded"]["trips"]


def outcome(wrong_outputs: int, overlapped: int) -> dict:
    case = {"trips": 4, "wrong_bytes": 0, "wrong_outputs": 0, "overlapped": overlapped}
    kind = {
        "arrival": "during the last piece",
        "piece_tokens": 512,
        "slow_link": True,
        "guarded": case | {"wrong_outputs": wrong_outputs},
        "unguarded": case,
    }
    return {"kinds": [kind], "settings": {}}


def test_a_wrong_output_is_a_fail(monkeypatch):
    monkeypatch.setattr(gpu_checklist, "measure", lambda *_: outcome(1, overlapped=4))
    rows = list(gpu_checklist.check_race(Setup(device="cuda")))
    assert [row.verdict for row in rows] == [Verdict.FAIL, Verdict.FIGURE, Verdict.PASS]
    assert "1 of 4 outputs wrong" in rows[0].says


def test_a_race_that_never_happened_is_a_fail(monkeypatch):
    monkeypatch.setattr(gpu_checklist, "measure", lambda *_: outcome(0, overlapped=0))
    rows = list(gpu_checklist.check_race(Setup(device="cuda")))
    assert [row.verdict for row in rows] == [Verdict.PASS, Verdict.FIGURE, Verdict.FAIL]


def test_a_check_that_breaks_off_is_a_fail_and_the_next_ones_run():
    def breaks_off():
        raise CheckFailed("out of memory")
        yield

    rows = list(gpu_checklist._rows("link", breaks_off))
    assert [(row.check, row.verdict, row.says) for row in rows] == [
        ("link", Verdict.FAIL, "out of memory")
    ]


def test_a_run_of_some_checks_keeps_what_the_others_found_on_this_machine(tmp_path):
    output = tmp_path / "result.json"
    assert gpu_checklist._earlier(output, {"name": "H200"}) == {}
    output.write_text(json.dumps({"machine": {"name": "H200"}, "checks": {"race": {"rows": []}}}))
    assert gpu_checklist._earlier(output, {"name": "H200"}) == {"race": {"rows": []}}
    assert gpu_checklist._earlier(output, {"name": "A800"}) == {}


def test_a_process_that_ends_badly_says_why_in_its_last_line(tmp_path):
    command = [sys.executable, "-c", "print('some log'); raise SystemExit('no room')"]
    with pytest.raises(CheckFailed, match=r"^no room$"):
        gpu_checklist._finished(command, tmp_path / "missing.json")
