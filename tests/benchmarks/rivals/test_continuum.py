"""Continuum's rules on worked examples (arXiv 2511.02230v6, §4.2, §4.3, Algorithm 1)."""

import math

import pytest

from benchmarks.rivals.continuum import Continuum
from tests.benchmarks.rivals.views import MACHINE, FixedView, agent, call, request
from tokencake_sglang.agents.table import Agent
from tokencake_sglang.agents.workflow import Step, Workflow
from tokencake_sglang.policy import Decision, Keep, Knowledge, LetGo, Request

TOKENS = 12_700
RELOAD_S = 0.1  # TOKENS over the link of MACHINE; the profile below says 1 s


def continuum() -> Continuum:
    policy = Continuum(MACHINE)
    policy.prepare(Knowledge(Workflow(()), lambda new, context: 1.0, lambda n, tokens: 0.0))
    return policy


def serve(policy: Continuum, rid: str, of: Agent, now_s: float) -> Request:
    """Queues a request, and finishes it at once."""
    served = request(rid, of, queued_s=now_s, tokens=TOKENS)
    policy.request_queued(served, now_s)
    policy.request_admitted(served, now_s)
    policy.request_finished(served, now_s)
    return served


def decide(policy: Continuum, view: FixedView) -> list[Decision]:
    """Applies what is decided, as the engine does."""
    decided = []
    for decision in policy.decide(view):
        decided.append(decision)
        if isinstance(decision, Keep):
            view.kept.add(decision.key)
        elif isinstance(decision, LetGo):
            view.kept.discard(decision.key)
    return decided


def learn(policy: Continuum, tool: str, gap_s: float, times: int) -> None:
    for _ in range(times):
        policy._observe(tool, gap_s)


@pytest.mark.parametrize(
    "of_search, of_shell, ttl_s",
    [
        (99, 1, math.log(50 + RELOAD_S)),  # 100 in all are too few: the prior
        (100, 1, 3.4),  # 101 in all: 1/101 of 50.1 s are worth 0.4 s more
        (101, 1, 3.0),  # 101 of its own
    ],
)
def test_the_distribution_is_the_tools_own_once_it_has_enough_samples(of_search, of_shell, ttl_s):
    policy = continuum()
    learn(policy, "search", 3.0, of_search)
    learn(policy, "shell", 3.4, of_shell)
    policy.delays_s.append(50.0)
    serve(policy, "r", agent("a"), 0.0)
    turn = policy.turns.by_agent[agent("a").key]
    turn.call = call("search")
    assert policy.ttl_s(turn) == pytest.approx(ttl_s)


def test_without_queueing_a_pin_is_worth_only_the_reload():
    policy = continuum()
    learn(policy, "search", 3.0, 101)
    serve(policy, "r", agent("a"), 0.0)
    turn = policy.turns.by_agent[agent("a").key]
    turn.call = call("search")
    assert policy.ttl_s(turn) == 0.0
    policy.delays_s.append(3.0 - 0.9 * RELOAD_S)
    assert policy.ttl_s(turn) == 3.0


def test_a_duration_is_from_the_turns_end_to_the_next_request():
    policy, a = continuum(), agent("a")
    serve(policy, "r1", a, 10.0)
    policy.call_started(a, call("search", started_s=10.5), 10.5)
    serve(policy, "r2", a, 14.0)
    assert policy.durations_s == {"search": [4.0]}


def test_a_successor_that_continues_the_context_ends_the_gap_and_a_join_does_not():
    policy, a = continuum(), agent("a")
    step = {"application": "app", "agent_type": "t", "critical": False, "output_tokens": 100}
    policy.turns.workflow = Workflow(
        [
            Step(rid="r1", key=a.key, wait_for=(), prompt_tokens=500, **step),
            Step(
                rid="join",
                key=agent("j").key,
                wait_for=("r1",),
                prompt_tokens=900,
                reuses={"r1": 480},
                **step,
            ),
            Step(
                rid="next",
                key=agent("n").key,
                wait_for=("r1",),
                prompt_tokens=900,
                reuses={"r1": 600},
                **step,
            ),
        ]
    )
    serve(policy, "r1", a, 1.0)
    policy.request_queued(request("join", agent("j")), 2.0)
    assert not policy.all_durations_s
    policy.request_queued(request("next", agent("n")), 3.0)
    assert policy.all_durations_s == [2.0]


def pinned(policy: Continuum, view: FixedView, *names: str) -> list[Agent]:
    """One program per name, in order of arrival, each inside a TTL."""
    learn(policy, "search", 3.0, 101)
    policy.delays_s.append(100.0)
    agents = []
    for number, name in enumerate(names):
        agents.append(agent("a", name))
        serve(policy, name, agents[-1], 0.1 * number)
        policy.call_started(agents[-1], call("search"), 0.1 * number)
    view.now_s = 1.0
    assert [type(decision) for decision in decide(policy, view)] == [Keep] * len(names)
    return agents


def test_a_pin_ends_with_its_time_unless_the_follow_up_waits():
    policy, view = continuum(), FixedView()
    first, second = pinned(policy, view, "p", "q")
    policy.request_queued(request("again", first, queued_s=2.0), 2.0)
    view.now_s = 3.05
    assert decide(policy, view) == []
    view.now_s = 4.0
    assert [decision.key for decision in decide(policy, view)] == [second.key]


def test_preempted_then_inside_a_ttl_then_the_programs_by_arrival():
    policy, view = continuum(), FixedView()
    for name in ("old", "older"):
        serve(policy, name, agent("x", name), -2.0 if name == "older" else -1.0)
    decide(policy, view)
    (inside,) = pinned(policy, view, "inside")
    queue = [
        request("new", agent("n", "new"), queued_s=1.0),
        request("of old", agent("y", "old"), queued_s=1.1),
        request("of older", agent("y", "older"), queued_s=1.3),
        request("retracted", agent("z", "late"), queued_s=1.2),
        request("back", inside, queued_s=1.4),
    ]
    for waiting in queue:
        policy.request_queued(waiting, waiting.queued_s)
    queue[3].retractions = 1
    view.queue = queue
    assert [queue[place].rid for place in policy.order(view)] == [
        "retracted", "back", "of older", "of old", "new",
    ]  # fmt: skip


def test_in_a_deadlock_the_latest_program_loses_its_pin():
    policy, view = continuum(), FixedView()
    first, second, third = pinned(policy, view, "p", "q", "r")
    kept = (third.key, first.key, second.key)
    assert policy.gives_up(kept, view) == third.key


def test_queueing_is_the_mean_wait_of_those_who_lost_their_pin():
    policy, view = continuum(), FixedView()
    first, second = pinned(policy, view, "p", "q")
    policy.delays_s.clear()
    back, other = request("again", first, queued_s=2.0), request("other", second, queued_s=2.0)
    policy.request_queued(back, 2.0)
    policy.request_queued(other, 2.0)
    view.now_s = 5.0
    view.kept.discard(first.key)  # for memory
    decide(policy, view)
    policy.request_admitted(back, 9.0)
    policy.request_admitted(other, 12.0)
    assert policy.queueing_s == 7.0
