"""Copies that a policy asks for, and admission that it refuses, on stubs of the engine."""

from types import SimpleNamespace

import pytest
from sglang.srt.managers.schedule_policy import AddReqResult

from tests.benchmarks.rivals.views import agent
from tokencake_sglang.engine.admission import asking_adder
from tokencake_sglang.engine.policy_planner import PolicyPlanner
from tokencake_sglang.policy import Insure

KEY = agent("a").key


class StubPlanner(PolicyPlanner):
    """A planner whose cache is 1,000 free tokens and a path with 600 unlocked ones."""

    def __init__(self, promised_tokens: int) -> None:
        self.insured: list[int] = []
        self.residents = {KEY: SimpleNamespace(leaf_id=7, tokens=600)}
        self.cache = SimpleNamespace(
            token_to_kv_pool_allocator=SimpleNamespace(available_size=lambda: 300),
            full_evictable_size=lambda: 700,
            unlocked_tokens=lambda _leaf_id: 600,
            insure=self.insured.append,
        )
        self._committed_tokens = promised_tokens


@pytest.mark.parametrize(("promised_tokens", "copied"), [(400, [7]), (401, [])])
def test_a_copy_is_put_off_while_what_it_locks_is_promised(promised_tokens, copied):
    planner = StubPlanner(promised_tokens)
    planner._apply(Insure(KEY, "test"))
    assert planner.insured == copied


@pytest.mark.parametrize(
    ("ends", "result"), [(False, AddReqResult.CONTINUE), (True, AddReqResult.OTHER)]
)
def test_a_refusal_ends_the_pass_for_policies_that_say_so(ends, result):
    policy = SimpleNamespace(admits=lambda *_: False, refusal_ends_pass=ends)
    planner = SimpleNamespace(policy=policy, request_of=lambda req: req)

    class Base:
        can_run_list = ("somebody",)
        running_batch = None

    assert asking_adder(Base, planner)().add_one_req(object()) is result
