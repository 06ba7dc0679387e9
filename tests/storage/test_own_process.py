"""Starts the tests of storage in a process of their own: a process can hold one scheduler."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(os.environ.get("TOKENCAKE_TEST_STORAGE") == "1", reason="started by this one")
def test_with_a_file_storage_backend():
    file = os.path.join(os.path.dirname(__file__), "test_storage.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "TOKENCAKE_TEST_STORAGE": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:]
