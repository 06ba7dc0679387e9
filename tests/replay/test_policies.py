"""Any policy, on the real scheduler: what it decides is what happens, and nothing else does."""

import pytest

from tests.replay.scripted import run, two_turns
from tests.timewarp.conftest import forking_process  # noqa: F401 (a fixture)
from tokencake_sglang.replay.workload import Workload
from tokencake_sglang.timewarp.forks import run_in_fork

pytestmark = pytest.mark.slow

FIRST_TURN_TOKENS = 2032  # 2,048 tokens, of which the last one's KV is never computed, in pages


@pytest.fixture
def outcome(forking_process):  # noqa: F811
    def replayed(policy: str | None, workload: Workload, pool_tokens: int = 4096) -> dict:
        return forking_process(run_in_fork, run, policy, workload, pool_tokens)

    return replayed


def test_a_policy_that_decides_nothing_is_stock_sglang(outcome):
    workload = two_turns(others=4)
    stock, nothing = outcome(None, workload), outcome("Policy", workload)
    # The pool is looked into at the scheduler's turns, and ticks give an idle one more of them.
    del nothing["figures"]["kv"], stock["figures"]["kv"]
    assert nothing["figures"] == stock["figures"]
    assert nothing["log"] == {}


def test_a_release_gives_up_the_device_and_keeps_the_host(outcome):
    seen = outcome("Releasing", two_turns())
    (before,), (after,) = seen["policy"]["before"], seen["policy"]["after"]
    assert (before.device_tokens, before.host_only_tokens) == (FIRST_TURN_TOKENS, 0)
    assert (after.device_tokens, after.host_only_tokens) == (0, FIRST_TURN_TOKENS)
    assert seen["requests"]["second"].host_hit_tokens == FIRST_TURN_TOKENS


def test_an_upload_is_there_before_the_request_and_nothing_is_loaded_at_admission(outcome):
    seen = outcome("Uploading", two_turns())
    assert seen["log"] == {
        "release.test": 1,
        "upload.test": 1,
        "hold.uploaded": 1,
        "unhold.admitted": 1,
    }
    second = seen["requests"]["second"]
    assert (second.device_hit_tokens, second.host_hit_tokens) == (FIRST_TURN_TOKENS, 0)


def test_a_discard_without_automatic_copies_loses_what_it_gives_up(outcome):
    seen = outcome("Discarding", two_turns())
    assert seen["policy"]["after"][0].tokens == 0
    second = seen["requests"]["second"]
    assert second.device_hit_tokens == second.host_hit_tokens == 0


def test_what_is_kept_outlives_others_that_need_memory(outcome):
    kept, free = outcome("Keeping", two_turns(others=4)), outcome("Policy", two_turns(others=4))
    assert kept["requests"]["second"].device_hit_tokens == FIRST_TURN_TOKENS
    assert free["requests"]["second"].device_hit_tokens < FIRST_TURN_TOKENS


def test_the_policy_orders_the_queue(outcome):
    def admitted(policy: str) -> list[str]:
        requests = outcome(policy, two_turns(others=4), pool_tokens=2560)["requests"]
        others = [r for r in requests.values() if r.rid.startswith("other")]
        return [r.rid for r in sorted(others, key=lambda r: r.admitted_s)]

    assert admitted("NewestFirst") == list(reversed(admitted("Policy")))


def test_who_is_not_admitted_waits_until_nothing_runs(outcome):
    workload = two_turns(others=4)
    for policy, at_once in (("Policy", 4), ("OneAtATime", 1)):
        requests = outcome(policy, workload, pool_tokens=16384)["requests"]
        others = [r for r in requests.values() if r.rid.startswith("other")]
        starts = [sum(o.admitted_s <= r.admitted_s < o.finished_s for o in others) for r in others]
        assert max(starts) == at_once


def test_the_policy_orders_eviction(outcome):
    def hit(policy: str) -> int:
        """Of the agent's first turn, the least recently used when the second of the others came."""
        second = outcome(policy, two_turns(others=2, every_s=1.0), pool_tokens=4608)["requests"][
            "second"
        ]
        return second.device_hit_tokens

    assert hit("Policy") == 0
    assert hit("LastUsedFirst") == FIRST_TURN_TOKENS
