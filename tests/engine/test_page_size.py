"""Everything that moves KV, again with pages of 16 tokens, in a process of its own."""

import os
import subprocess
import sys

import pytest

from tests.engine.scenarios import PAGE_SIZE


@pytest.mark.slow
@pytest.mark.skipif(PAGE_SIZE != 1, reason="this is the run that the other one starts")
def test_with_pages_of_16_tokens():
    folder = os.path.dirname(__file__)
    names = ("test_temporal.py", "test_uploads.py", "test_in_flight.py", "test_prefill_share.py")
    command = [sys.executable, "-m", "pytest", "-q", *(os.path.join(folder, n) for n in names)]
    environment = {**os.environ, "TOKENCAKE_TEST_PAGE_SIZE": "16"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:]
