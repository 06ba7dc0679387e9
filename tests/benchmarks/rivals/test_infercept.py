"""InferCept's rules on worked examples (arXiv 2402.01869; WukLab/InferCept, scheduler_v2.py)."""

from benchmarks.rivals.infercept import InferCept
from benchmarks.rivals.waste import Profile
from tests.benchmarks.rivals.views import FixedView, agent, call, request
from tokencake_sglang.agents.table import Agent
from tokencake_sglang.policy import (
    Cached,
    CachedTokens,
    Decision,
    Discard,
    EvictionCandidate,
    Insure,
    Keep,
    LetGo,
    Machine,
    Release,
    Request,
)

SLOW_LINK = Machine(
    pool_tokens=48_800, host_tokens=488_000, page_size=16, link_tokens_per_s=10_000.0
)


def uncopied(tokens: int) -> Cached:
    return CachedTokens(tokens, 0, 0, tokens, tokens)


def infercept() -> InferCept:
    policy = InferCept(SLOW_LINK)
    policy.profile = Profile(a=1e-3, c=0.016, saturation=100)
    return policy


def intercepted(
    policy: InferCept, view: FixedView, name: str, tokens: int, predicted_s: float | None
) -> Agent:
    """A program of one agent that stops at a call now, with its context on the device."""
    of = agent("a", name)
    served = request(name, of, queued_s=view.now_s, tokens=tokens)
    policy.request_queued(served, view.now_s)
    policy.request_admitted(served, view.now_s)
    policy.request_finished(served, view.now_s)
    policy.call_started(of, call(started_s=view.now_s, predicted_s=predicted_s), view.now_s)
    view.tokens = {**view.tokens, of.key: uncopied(tokens)}
    return of


def decide(policy: InferCept, view: FixedView) -> list[Decision]:
    """Applies what is decided, as the engine does."""
    decided = []
    for decision in policy.decide(view):
        decided.append(decision)
        cached = view.cached(decision.key)
        if isinstance(decision, Keep):
            view.kept.add(decision.key)
        elif isinstance(decision, LetGo):
            view.kept.discard(decision.key)
        elif isinstance(decision, Insure):
            tokens = cached.device_tokens
            view.tokens = {**view.tokens, decision.key: CachedTokens(tokens, 0, tokens, tokens, 0)}
    return decided


def test_the_largest_least_waste_swaps_and_the_budget_leaves_the_rest_to_their_own():
    policy, view = infercept(), FixedView(machine=SLOW_LINK)
    policy.profile = Profile(a=1e-3, c=0.0, saturation=10_000)  # one chunk: W_d = a * C^2
    longest = intercepted(policy, view, "longest", 4_000, 60.0)  # 240,000; 16,000
    long = intercepted(policy, view, "long", 2_000, 60.0)  # 120,000; 4,000
    short = intercepted(policy, view, "short", 1_500, 1.0)  # 1,500; 2,250
    view.now_s = 0.04  # 400 tokens' worth of link
    decided = [(type(decision), decision.key) for decision in decide(policy, view)]
    assert decided == [(Insure, longest.key), (Discard, long.key), (Keep, short.key)]


def test_a_large_swap_takes_the_budget_of_several_iterations():
    policy, view = infercept(), FixedView(machine=SLOW_LINK)
    intercepted(policy, view, "first", 3_000, 60.0)
    view.now_s = 0.1
    assert [type(decision) for decision in decide(policy, view)] == [Insure]
    second = intercepted(policy, view, "second", 300, 3.0)
    view.now_s = 0.2  # 2000 of 3000 tokens are left, 1000 go in an iteration
    assert [type(decision) for decision in decide(policy, view)] == [Discard]
    assert second.key not in policy._live
    intercepted(policy, view, "third", 300, 3.0)
    view.now_s = 0.4
    assert [type(decision) for decision in decide(policy, view)] == [Insure]


def test_nothing_is_swapped_that_is_back_before_it_has_gone():
    policy, view = infercept(), FixedView(machine=SLOW_LINK)
    short = intercepted(policy, view, "short", 4_000, 0.7)  # 0.4 s each way
    view.now_s = 0.1
    assert [(type(d), d.key) for d in decide(policy, view)] == [(Keep, short.key)]


def test_a_call_without_an_estimate_is_taken_to_last_as_long_again():
    policy, view = infercept(), FixedView(machine=SLOW_LINK)
    unknown = intercepted(policy, view, "unknown", 4_000, None)
    view.now_s = 0.5
    assert [type(decision) for decision in decide(policy, view)] == [Keep]
    view.now_s = 1.0
    assert [type(decision) for decision in decide(policy, view)] == [LetGo, Insure]
    assert policy.remaining_s(policy.turns.by_agent[unknown.key], 1.0) == 1.0


def test_swapped_slots_are_given_up_while_somebody_waits_for_them():
    policy, view = infercept(), FixedView(machine=SLOW_LINK)
    swapped = intercepted(policy, view, "swapped", 1_000, 60.0)
    view.now_s = 1.0
    decide(policy, view)
    view.now_s = 2.0
    assert decide(policy, view) == []
    view.left_waiting = True
    assert decide(policy, view) == [Release(swapped.key, "swapped")]


def test_resumed_and_retracted_first_then_new_each_by_original_arrival():
    policy, view = infercept(), FixedView(machine=SLOW_LINK)
    first = intercepted(policy, view, "first", 1_000, 1.0)
    view.now_s = 1.0
    second = intercepted(policy, view, "second", 1_000, 1.0)
    queue: list[Request] = [
        request("new", agent("a", "new"), queued_s=2.0),
        request("back of second", second, queued_s=3.0),
        request("retracted", agent("a", "third"), queued_s=3.5),
        request("back of first", first, queued_s=4.0),
    ]
    for waiting in queue:
        policy.request_queued(waiting, waiting.queued_s)
    queue[2].retractions = 1
    view.queue = queue
    assert [queue[place].rid for place in policy.order(view)] == [
        "back of first",
        "back of second",
        "retracted",
        "new",
    ]


def test_the_memory_of_who_ended_goes_first_then_what_has_a_copy():
    policy, view = infercept(), FixedView(machine=SLOW_LINK)
    live = intercepted(policy, view, "live", 1_000, 60.0).key
    dead = agent("a", "dead").key

    def node(key, last_access: float, on_host: bool) -> EvictionCandidate:
        return EvictionCandidate((key,), 100, 0, last_access, on_host)

    nodes = [node(live, 1.0, False), node(live, 3.0, True), node(dead, 4.0, False)]
    assert sorted(nodes, key=policy.eviction_rank) == nodes[::-1]


def test_only_the_policy_copies_to_the_host():
    assert not InferCept.automatic_backup
