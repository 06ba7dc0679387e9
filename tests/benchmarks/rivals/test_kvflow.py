"""KVFlow's steps to execution on a graph small enough to count them by hand."""

import pytest

from benchmarks.rivals.kvflow import NEVER, KVFlow
from tests.benchmarks.rivals.views import MACHINE, FixedView, agent, on_device, request
from tokencake_sglang.agents.workflow import Step, Workflow
from tokencake_sglang.policy import (
    CachedTokens,
    EvictionCandidate,
    Knowledge,
    LetGo,
    Request,
    Upload,
)

NAMES = ("plan", "code", "draw", "join", "end")
AGENTS = {name: agent(name) for name in NAMES}


def step(name: str, *wait_for: str, **reuses: int) -> Step:
    return Step(
        rid=name,
        key=AGENTS[name].key,
        application="app",
        agent_type="default",
        critical=False,
        wait_for=wait_for,
        prompt_tokens=1000,
        output_tokens=100,
        reuses=reuses,
    )


def req(name: str) -> Request:
    return request(name, AGENTS[name])


@pytest.fixture
def kvflow() -> KVFlow:
    """plan → {code, draw} → join → end; the plan has ended, code is in the server."""
    policy = KVFlow(MACHINE)
    steps = (
        step("plan"),
        step("code", "plan", plan=1100),
        step("draw", "plan", plan=600),
        step("join", "code", "draw", code=1100, draw=600),
        step("end", "join", join=1100),
    )
    policy.prepare(Knowledge(Workflow(steps), lambda *_: 0.0, lambda *_: 0.0))
    policy.request_queued(req("plan"), 0.0)
    policy.request_finished(req("plan"), 1.0)
    policy.request_queued(req("code"), 2.0)
    return policy


def node(*names: str, depth: int = 0, last_access: float = 0.0) -> EvictionCandidate:
    keys = tuple(AGENTS[name].key for name in names)
    return EvictionCandidate(keys, 100, depth, last_access, on_host=True)


def test_steps_are_one_more_than_the_farthest_that_is_waited_for(kvflow):
    # code 0, draw 1 + 0; join 1 + max(0, 1); end 1 + 2
    assert [kvflow.steps_to(name) for name in NAMES[1:]] == [0, 1, 2, 3]


def test_steps_shrink_as_the_workflow_goes_on(kvflow):
    assert kvflow.steps_to("end") == 3
    kvflow.request_queued(req("draw"), 3.0)
    assert [kvflow.steps_to(name) for name in NAMES[1:]] == [0, 0, 1, 2]
    kvflow.request_finished(req("code"), 4.0)
    kvflow.request_finished(req("draw"), 4.0)
    assert [kvflow.steps_to(name) for name in ("join", "end")] == [1, 2]


def test_the_farthest_is_evicted_first_and_what_nobody_will_read_before_all(kvflow):
    kvflow.request_finished(req("code"), 4.0)
    near, far = node("plan", depth=0), node("code", depth=0)  # draw at 1, join at 2
    unclaimed = node("plan", depth=600)  # draw reuses only the first 600 tokens
    newest = node(last_access=9.0)
    ranks = [kvflow.eviction_rank(n)[0] for n in (newest, unclaimed, far, near)]
    assert ranks == [-NEVER, -NEVER, -2, -1]


def test_a_node_has_the_fewest_steps_of_all_who_claim_it(kvflow):
    kvflow.request_finished(req("code"), 4.0)
    assert kvflow.eviction_rank(node("code", "plan"))[0] == -1


def test_equally_far_nodes_go_least_recently_used_first(kvflow):
    older, newer = node("plan", last_access=1.0), node("plan", last_access=2.0)
    assert kvflow.eviction_rank(older) < kvflow.eviction_rank(newer)


def test_an_agent_outside_the_graph_is_at_step_one(kvflow):
    stranger = agent("stranger")
    kvflow.request_finished(request("x", stranger), 1.0)
    claimed = EvictionCandidate((stranger.key,), 100, 0, 0.0, on_host=True)
    assert kvflow.eviction_rank(claimed)[0] == -1


def test_prefixes_at_most_two_steps_ahead_are_loaded_nearest_first(kvflow):
    kvflow.request_finished(req("code"), 4.0)
    keys = {name: AGENTS[name].key for name in NAMES}
    on_host = {keys["plan"]: CachedTokens(0, 1100, 0, 0), keys["code"]: CachedTokens(0, 1100, 0, 0)}
    view = FixedView(now_s=5.0, free_tokens=5000, tokens=on_host)
    loads = [Upload(keys["plan"], "step 1"), Upload(keys["code"], "step 2")]
    assert list(kvflow.decide(view)) == loads  # for draw, then for join


def test_a_load_does_not_take_the_room_of_what_queued_requests_have_cached(kvflow):
    queued = req("code")
    queued.cached_tokens = 900
    tokens = {AGENTS["plan"].key: CachedTokens(0, 1100, 0, 0)}
    tight = FixedView(now_s=5.0, free_tokens=1999, queue=[queued], tokens=tokens)
    assert list(kvflow.decide(tight)) == []
    enough = FixedView(now_s=6.0, free_tokens=2000, queue=[queued], tokens=tokens)
    assert list(kvflow.decide(enough)) == [Upload(AGENTS["plan"].key, "step 1")]


def test_nothing_is_loaded_ahead_while_requests_wait_for_memory(kvflow):
    tokens = {AGENTS["plan"].key: CachedTokens(0, 1100, 0, 0)}
    assert list(kvflow.decide(FixedView(5.0, free_tokens=5000, tokens=tokens))) != []
    waiting = FixedView(6.0, free_tokens=5000, tokens=tokens, left_waiting=True)
    assert list(kvflow.decide(waiting)) == []


def test_a_request_whose_prefix_is_being_loaded_is_passed_over(kvflow):
    key = AGENTS["plan"].key
    view = FixedView(now_s=5.0, free_tokens=5000, tokens={key: CachedTokens(0, 1100, 0, 0)})
    assert kvflow.admits(req("draw"), view)
    for _ in kvflow.decide(view):
        view.uploading.add(key)
    assert not kvflow.admits(req("draw"), view)
    assert kvflow.admits(req("join"), view)
    view.uploading.clear()
    assert kvflow.admits(req("draw"), view)


def test_a_loaded_prefix_is_not_pinned(kvflow):
    key = AGENTS["plan"].key
    view = FixedView(now_s=5.0, free_tokens=5000, tokens={key: CachedTokens(0, 1100, 0, 0)})
    for _ in kvflow.decide(view):
        view.uploading.add(key)
    after = FixedView(now_s=5.1, free_tokens=5000, tokens={key: on_device(1100)}, kept={key})
    assert list(kvflow.decide(after)) == [LetGo(key, "loaded")]
