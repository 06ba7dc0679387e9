"""The decision log."""

import json
import os
import subprocess
import sys

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.observability.decisions import RECENT_KEPT, Action, DecisionLog

KEY = AgentKey("app", "coder")


def test_counts_and_tokens_are_kept_by_action_and_reason():
    log = DecisionLog()
    log.record(1.0, KEY, Action.RELEASE, "finished", 100)
    log.record(2.0, KEY, Action.RELEASE, "finished", 50)
    log.count(Action.DEFER, "reserve_untagged")
    snapshot = log.snapshot()
    assert snapshot["counts"] == {"defer.reserve_untagged": 1, "release.finished": 2}
    assert snapshot["tokens"] == {"release.finished": 150}


def test_recent_decisions_are_bounded_and_counts_are_not():
    log = DecisionLog()
    for number in range(RECENT_KEPT + 10):
        log.record(float(number), KEY, Action.HOLD, "uploaded")
    assert len(log.recent) == RECENT_KEPT
    assert log.counts["hold.uploaded"] == RECENT_KEPT + 10


def test_the_file_explains_each_decision(tmp_path):
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(str(path))
    log.record(1.5, KEY, Action.UPLOAD, "return_predicted", 256, expected_return_s=2.0)
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "now_s": 1.5,
        "application": "app",
        "agent": "coder",
        "action": "upload",
        "reason": "return_predicted",
        "tokens": 256,
        "detail": {"expected_return_s": 2.0},
    }


WRITES_A_NAME = """
import sys
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.observability.decisions import Action, DecisionLog
DecisionLog(sys.argv[1]).record(1.0, AgentKey("app", "\\u4f5c\\u5bb6"), Action.HOLD, "uploaded")
"""


def test_names_in_any_script_are_written_whatever_the_locale(tmp_path):
    path = tmp_path / "decisions.jsonl"
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", WRITES_A_NAME, str(path)], env=ascii_only, check=True)
    assert json.loads(path.read_bytes())["agent"] == "作家"


def test_a_full_disk_ends_the_file_and_nothing_else(caplog):
    log = DecisionLog("/dev/full")
    log.record(1.0, KEY, Action.HOLD, "uploaded")
    log.record(2.0, KEY, Action.HOLD, "uploaded")
    assert log.counts["hold.uploaded"] == 2
    (message,) = caplog.messages
    assert message == "tokencake: the decision log /dev/full ends here: No space left on device"
