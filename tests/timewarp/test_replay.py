"""Whole replays in virtual time, each in its own process: one holds one scheduler."""

import json
import subprocess
import sys

import pytest


def replay(*arguments: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.replay_run", "--dag", "code_writer"]
    command += ["--applications", "2", "--rate", "1.0", "--pool-tokens", "16384", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout[run.stdout.index("{") :])["figures"]


@pytest.mark.slow
def test_the_same_run_gives_the_same_figures_to_the_last_digit():
    first, second = replay("--system", "tokencake"), replay("--system", "tokencake")
    assert first == second
    assert first["output_tokens"] == 2 * 6_464
    assert first["host_hit_tokens"] > 0, "the pool was large enough: nothing was put to the test"
