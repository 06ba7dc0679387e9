"""The check at start."""

from tokencake_sglang.spatial.host_tier import host_shortage

SIZES = {"context_tokens": 1_000, "host_tokens": 20_000, "pool_tokens": 10_000}


def test_nothing_is_said_of_a_host_tier_that_holds_everybody():
    assert host_shortage(agents=20, **SIZES) is None


def test_a_host_tier_that_is_too_small_is_named_with_one_that_is_not():
    message = host_shortage(agents=21, **SIZES)
    assert message is not None
    assert "holds 20,000 tokens, 21 agents of 1,000 have 21,000" in message
    assert "--hicache-ratio 2.1" in message
    assert "this one holds 20" in message
