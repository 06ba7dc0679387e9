"""How far apart steps are, and how much an upload takes at once because of it."""

import pytest

from tokencake_sglang.engine.step_gap import DECAY, LONGEST_STEP_S, StepGap, piece_tokens

LINK_TOKENS_PER_S = 127_157


def longest_after(*stamps_s: float) -> float:
    gap = StepGap()
    for stamp_s in stamps_s:
        gap.tell(stamp_s)
    return gap.longest_s


def test_the_longest_step_is_forgotten_slowly_and_a_silence_is_none():
    assert longest_after(10.0) == 0.0, "nothing before it to measure from"
    assert longest_after(10.0, 10.5) == pytest.approx(0.5)
    assert longest_after(10.0, 10.5, 10.51) == pytest.approx(0.5 * DECAY)
    assert longest_after(10.0, 10.5, 10.51, 11.11) == pytest.approx(0.6)
    assert longest_after(10.0, 10.5, 10.5 + LONGEST_STEP_S) == pytest.approx(0.5)
    assert longest_after(10.0, 10.5, 10.5) == pytest.approx(0.5), "two ticks at one stamp"


def test_a_piece_fills_the_link_for_a_step():
    assert piece_tokens(4096, LINK_TOKENS_PER_S, step_s=0.5) == 63_578
    assert piece_tokens(4096, LINK_TOKENS_PER_S, step_s=0.02) == 4096
    assert piece_tokens(4096, LINK_TOKENS_PER_S, step_s=0.0) == 4096
