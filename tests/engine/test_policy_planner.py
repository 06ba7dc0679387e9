"""What the mechanism under a policy sees to by itself."""

from types import SimpleNamespace

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.engine.policy_planner import PolicyPlanner
from tokencake_sglang.policy import Keep


def test_a_policy_is_told_of_a_request_with_its_size():
    told = []
    policy = SimpleNamespace(
        request_queued=lambda request, now_s: told.append((request.tokens, request.cached_tokens))
    )
    planner = SimpleNamespace(requests={}, now_s=1.0, agent_of=lambda _req: None, policy=policy)
    req = SimpleNamespace(
        rid="r",
        origin_input_ids=[0] * 600,
        output_ids=[0] * 16,
        prefix_len=400,
        sampling_params=SimpleNamespace(max_new_tokens=32),
    )
    PolicyPlanner.request_of(planner, req)
    assert told == [(616, 400)]


def test_a_prompt_in_chunks_runs_once():
    """It is in the last batch or not, as the chunks go."""
    chunked, other = object(), object()
    seen = []
    planner = SimpleNamespace(
        _look_at=lambda _queue, running: seen.append(running),
        committed_tokens=lambda *_: 0,
        keep_free=lambda _tokens: None,
        _finish_upload=lambda: None,
        policy=SimpleNamespace(decide=lambda _view: []),
    )
    PolicyPlanner.step(planner, [], [other, chunked], chunked)
    PolicyPlanner.step(planner, [], [other], chunked)
    assert seen == [[other, chunked], [other, chunked]]


def test_pins_that_a_policy_sets_leave_what_requests_are_about_to_take():
    """SGLang takes a prompt's later chunks for granted: it dies if their slots are gone."""
    keep = Keep(AgentKey("app", "a"), "test")
    done = []
    planner = SimpleNamespace(
        _look_at=lambda *_: None,
        committed_tokens=lambda *_: 700,
        keep_free=lambda tokens: done.append(tokens),
        _finish_upload=lambda: done.append("finish"),
        _apply=lambda decision: done.append(decision),
        policy=SimpleNamespace(decide=lambda _view: [keep]),
    )
    PolicyPlanner.step(planner, [], [])
    assert done.index(keep) < len(done) - 1
    assert done[-1] == 700
