"""Ranks decide alike: with SGLang's own broadcast and collectives, and against a single one."""

import pytest

from tests.timewarp.runs import code_writer
from tokencake_sglang.timewarp.ranks import run_in_ranks

pytestmark = pytest.mark.slow

APPLICATIONS, POOL_TOKENS = 2, 14_336


def on_ranks(count: int, overlap: bool) -> list[dict]:
    return run_in_ranks(code_writer, APPLICATIONS, POOL_TOKENS, overlap, count=count, timeout_s=300)


def test_two_ranks_log_the_same_decisions_as_one(forking_process):
    (alone,) = forking_process(on_ranks, 1, True)
    first, second = forking_process(on_ranks, 2, True)
    assert (alone.pop("ranks"), first.pop("ranks"), second.pop("ranks")) == (1, 2, 2)
    actions = {decision["action"] for decision in alone["decisions"]}
    assert {"release", "upload"} <= actions, "the pool was large enough: nothing to decide"
    assert first["decisions"] == second["decisions"]
    assert first == second
    assert first == alone
