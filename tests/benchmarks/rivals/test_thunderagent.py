"""ThunderAgent's inequality, and its orders of pausing and resuming, worked by hand."""

import dataclasses

import pytest

from benchmarks.rivals.thunderagent import ThunderAgent, WithHost
from tests.benchmarks.rivals.views import MACHINE, FixedView, agent, request
from tokencake_sglang.agents.workflow import Step, Workflow
from tokencake_sglang.policy import Knowledge, Request


def policy(pool_tokens: int) -> ThunderAgent:
    return ThunderAgent(dataclasses.replace(MACHINE, pool_tokens=pool_tokens))


def view(now_s: float) -> FixedView:
    """Everything locked that could be: nothing is shared between programs."""
    return FixedView(now_s=now_s)


def arrive(thunder: ThunderAgent, program: str, tokens: int, now_s: float = 0.0) -> Request:
    sent = request(f"{program}-{now_s}", agent("a", program), queued_s=now_s, tokens=tokens)
    thunder.request_queued(sent, now_s)
    return sent


def reason(thunder: ThunderAgent, program: str, tokens: int, now_s: float = 0.0) -> Request:
    sent = arrive(thunder, program, tokens, now_s)
    thunder.request_admitted(sent, now_s)
    return sent


def act(thunder: ThunderAgent, program: str, tokens: int, now_s: float = 0.0) -> None:
    thunder.request_finished(reason(thunder, program, tokens, now_s), now_s)


def test_acting_programs_count_with_half_as_much_every_second():
    thunder = policy(50_000)
    reason(thunder, "reasons", 20_000)
    act(thunder, "acts", 16_000)
    # c_p + 100 + c_q * 2**-t + 100, at t = 0, 1 and 3 s
    assert thunder.room_tokens(0.0) == 50_000 - 20_100 - 16_100
    assert thunder.room_tokens(1.0) == 50_000 - 20_100 - 8_100
    assert thunder.room_tokens(3.0) == 50_000 - 20_100 - 2_100


@pytest.mark.parametrize(("pool_tokens", "paused"), [(28_200, set()), (28_199, {"acts"})])
def test_nobody_is_paused_until_the_working_set_exceeds_the_pool(pool_tokens, paused):
    thunder = policy(pool_tokens)
    reason(thunder, "reasons", 20_000, 4.0)
    act(thunder, "acts", 16_000, 4.0)
    thunder.decide(view(5.0))  # t = 1 s
    assert set(thunder.paused_s) == paused


def test_acting_programs_are_paused_before_reasoning_ones_and_small_before_large():
    thunder = policy(60_000)
    act(thunder, "acts, large", 12_000, 5.0)
    reason(thunder, "reasons, large", 20_000, 5.0)
    act(thunder, "acts, small", 10_000, 5.0)
    reason(thunder, "reasons, small", 15_000, 5.0)
    order = []
    for pool_tokens in (50_000, 40_000, 30_000, 10_000):
        thunder.machine = dataclasses.replace(MACHINE, pool_tokens=pool_tokens)
        thunder._pause_until_it_fits(5.0)
        order.append((set(thunder.paused_s), set(thunder.marked)))
    small, both = {"acts, small"}, {"acts, small", "acts, large"}
    assert order == [
        (small, set()),
        (both, set()),
        (both, {"reasons, small"}),
        (both, {"reasons, small", "reasons, large"}),
    ]


def test_a_marked_program_is_paused_when_its_turn_ends():
    thunder = policy(60_000)
    running = reason(thunder, "p", 30_000)
    reason(thunder, "q", 40_000)
    thunder.tick(view(0.0))
    assert thunder.marked == {"p"} and not thunder.paused_s
    thunder.request_finished(running, 2.0)
    assert thunder.paused_s == {"p": 2.0} and not thunder.marked
    assert not thunder.admits(arrive(thunder, "p", 31_000, 3.0), view(3.0))


def test_resumed_are_those_with_a_request_then_new_ones_then_acting_ones_small_first():
    thunder = policy(1_000)
    for program, tokens in (("back, large", 9_000), ("back, small", 8_000), ("acts", 2_000)):
        act(thunder, program, tokens, 0.0)
    thunder.paused_s = dict.fromkeys(("back, large", "back, small", "acts"), 0.0)
    arrive(thunder, "back, large", 9_000, 1.0)
    arrive(thunder, "back, small", 8_000, 1.0)
    arrive(thunder, "new", 1_000, 1.0)  # does not fit, and others are paused: it waits
    resumed = []
    for pool_tokens in (8_100, 17_200, 18_300, 20_400):
        thunder.machine = dataclasses.replace(MACHINE, pool_tokens=pool_tokens)
        before = set(thunder.paused_s)
        thunder._resume(1.0)
        resumed.append(before - set(thunder.paused_s))
    assert resumed == [{"back, small"}, {"back, large"}, {"new"}, {"acts"}]


def test_a_new_program_waits_behind_paused_ones_even_if_it_fits():
    thunder = policy(50_000)
    assert thunder.admits(arrive(thunder, "first", 10_000), view(0.0))
    thunder.paused_s["another"] = 0.0
    assert not thunder.admits(arrive(thunder, "second", 1_000), view(0.0))


def test_capacity_is_looked_at_every_five_seconds():
    thunder = policy(30_000)
    thunder.decide(view(0.0))
    reason(thunder, "p", 20_000, 1.0)
    reason(thunder, "q", 20_000, 1.0)
    thunder.decide(view(4.9))
    assert not thunder.marked
    thunder.decide(view(5.0))
    assert thunder.marked


def test_after_half_an_hour_a_program_is_resumed_whatever_the_room():
    thunder = policy(30_000)
    reason(thunder, "p", 29_000)
    arrive(thunder, "q", 20_000)
    thunder._resume(1799.0)
    assert set(thunder.paused_s) == {"q"}
    thunder._resume(1800.0)
    assert not thunder.paused_s


def test_with_everyone_paused_one_is_resumed_even_if_it_is_larger_than_the_pool():
    thunder = policy(30_000)
    arrive(thunder, "p", 40_000)
    arrive(thunder, "q", 50_000)
    assert set(thunder.paused_s) == {"p", "q"}
    thunder._resume(5.0)
    assert set(thunder.paused_s) == {"q"}


def test_what_programs_share_on_the_device_is_counted_once():
    thunder = policy(30_000)
    reason(thunder, "p", 20_000)
    reason(thunder, "q", 15_000)
    # 35,000 tokens run in 25,000 locked slots.
    thunder.tick(FixedView(now_s=0.0, free_tokens=3_000, evictable_tokens=2_000))
    assert thunder.shared_tokens == 10_000
    assert not thunder.marked


def test_a_programs_branches_count_what_they_add_to_the_context_they_share():
    agents = {name: agent(name) for name in ("plan", "x", "y")}
    steps = [
        Step("plan", agents["plan"].key, "app", "t", False, (), 900, 100, reuses={}),
        *(
            Step(n, agents[n].key, "app", "t", False, ("plan",), 1300, 50, reuses={"plan": 1000})
            for n in ("x", "y")
        ),
    ]
    thunder = policy(30_000)
    thunder.prepare(Knowledge(Workflow(steps), lambda *_: 0.0, lambda *_: 0.0))
    plan = request("plan", agents["plan"], tokens=900)
    thunder.request_queued(plan, 0.0)
    thunder.request_admitted(plan, 0.0)
    plan.tokens = 1000
    thunder.request_finished(plan, 1.0)
    for name in ("x", "y"):
        thunder.request_queued(request(name, agents[name], tokens=1300), 2.0)
    assert thunder.programs.by_name["app"].tokens == 1300 + 300


def test_the_port_with_a_host_tier_counts_95_percent_of_both():
    assert WithHost(MACHINE).capacity_tokens == 0.95 * (48_800 + 488_000)


def test_requests_of_paused_programs_stand_behind_all_others():
    thunder = policy(50_000)
    queue = [arrive(thunder, program, 10_000) for program in ("p", "q", "r")]
    thunder.paused_s["q"] = 0.0
    assert thunder.order(FixedView(queue=queue)) == [0, 2, 1]


def test_untagged_requests_pass_and_what_they_hold_is_off_the_capacity():
    thunder = policy(30_000)
    reason(thunder, "p", 20_000)
    chat = request("chat", tokens=2_000)
    thunder.request_queued(chat, 0.0)
    thunder.request_admitted(chat, 0.0)
    assert thunder.admits(chat, view(0.0))
    thunder.tick(FixedView(now_s=0.0, running=[chat], free_tokens=8_000))
    assert thunder.room_tokens(0.0) == 30_000 - 20_100 - 2_000
