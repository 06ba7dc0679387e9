"""Whom to release, and when to start an upload. Golden values from the formulas' sources."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.temporal.policy import FarthestReturnFirst, Idle

# Qwen2.5-14B over PCIe 4: 25e9 B/s / 196,608 B per token.
LINK_TOKENS_PER_S = 25e9 / 196_608
POLICY = FarthestReturnFirst(link_tokens_per_s=LINK_TOKENS_PER_S, lead_s=0.2)


def idle(name: str, return_s: float, tokens: int = 1000, order: int = 0) -> Idle:
    return Idle(AgentKey("app", name), return_s, tokens, order)


def released(now_s: float, *agents: Idle, shortage_tokens: int = 1) -> list[tuple[str, str]]:
    return [(r.key.agent, r.reason) for r in POLICY.releases(now_s, shortage_tokens, agents)]


def test_round_trip_of_10k_tokens_over_pcie4():
    # 10,000 tokens are 1.97 GB: 79 ms each way.
    assert math.isclose(POLICY.round_trip_s(10_000), 0.1573, rel_tol=1e-3)


def test_the_farthest_return_goes_first():
    assert released(0.0, idle("near", 5.0), idle("far", 50.0)) == [
        ("far", "stall_exceeds_round_trip"),
        ("near", "stall_exceeds_round_trip"),
    ]


def test_the_dead_go_before_everybody():
    assert released(0.0, idle("far", 1e6), idle("dead", math.inf))[0] == ("dead", "finished")


def test_a_stall_within_the_round_trip_and_lead_is_kept():
    tokens = int(LINK_TOKENS_PER_S)  # two seconds there and back
    assert released(0.0, idle("a", 2.1, tokens)) == []
    assert released(0.0, idle("a", 2.3, tokens)) == [("a", "stall_exceeds_round_trip")]


def test_nothing_short_nothing_released():
    assert released(0.0, idle("far", 1e6), shortage_tokens=0) == []


def test_an_agent_without_device_tokens_is_passed_over():
    assert released(0.0, idle("gone", 1e6, tokens=0)) == []


def test_an_upload_ends_its_lead_before_the_return():
    start_s = POLICY.upload_start_s(return_s=100.0, host_tokens=127_157)  # one second of link
    assert math.isclose(start_s, 98.8, abs_tol=1e-4)


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 50_000)), max_size=20),
    st.integers(0, 100_000),
)
def test_order_does_not_depend_on_how_agents_are_listed(agents, shortage_tokens):
    listed = [idle(f"a{i}", r, t, order=i) for i, (r, t) in enumerate(agents)]
    forward = list(POLICY.releases(0.0, shortage_tokens, listed))
    backward = list(POLICY.releases(0.0, shortage_tokens, reversed(listed)))
    assert forward == backward
