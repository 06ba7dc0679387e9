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
            leaves_room=lambda _leaf_id, tokens: 300 + 700 - 600 >= tokens,
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


class RefusingPlanner(PolicyPlanner):
    """A planner with one waiting request, of which its policy thinks what ``will_admit`` says."""

    def __init__(self, *, reopens: bool) -> None:
        self.will_admit = False
        self.room_tokens = 100
        self.cache = SimpleNamespace(await_storage=lambda _queue: 0)
        self.policy = SimpleNamespace(
            admits=lambda *_: self.will_admit, order=lambda _view: None, reopens_admission=reopens
        )
        self.found_memory_full = self.refused = False
        self.admission_over([object()])

    def order(self, waiting_queue):
        self.queue = waiting_queue

    def _room_tokens(self):
        return self.room_tokens

    def attempt(self) -> bool:
        self.refused = not self.will_admit
        return self.closes_admission(admitted=self.will_admit)


@pytest.mark.parametrize("reopens", [False, True])
def test_what_a_policy_refuses_is_not_matched_again_until_something_has_changed(reopens):
    planner = RefusingPlanner(reopens=reopens)
    queue = [object()]
    assert planner.attempt()
    assert not planner.reopens_admission(queue)
    planner.will_admit = True
    assert planner.reopens_admission(queue)
    planner.will_admit = False
    planner.room_tokens += 1  # what the policy looks at may be another, once matched
    assert planner.reopens_admission(queue)


@pytest.mark.parametrize("reopens", [False, True])
def test_full_memory_is_looked_at_again_if_the_policy_says_so(reopens):
    planner = RefusingPlanner(reopens=reopens)
    planner.will_admit = planner.found_memory_full = True
    assert planner.attempt()
    assert not planner.reopens_admission([object()])
    planner.room_tokens += 1
    assert planner.reopens_admission([object()]) is reopens
