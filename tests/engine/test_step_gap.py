"""How far apart steps are, and how much an upload takes at once because of it."""

import pytest

from tokencake_sglang.engine.step_gap import DECAY, LONGEST_STEP_S, StepGap, piece_tokens

LINK_TOKENS_PER_S = 127_157


def longest_after(*stamps_s: float) -> float:
    gap = StepGap()
    for stamp_s in stamps_s:
        gap.tell(stamp_s, forward=True)
    return gap.longest_s


def test_the_longest_step_is_forgotten_slowly_and_a_silence_is_none():
    assert longest_after(10.0) == 0.0, "nothing before it to measure from"
    assert longest_after(10.0, 10.5) == pytest.approx(0.5)
    assert longest_after(10.0, 10.5, 10.51) == pytest.approx(0.5 * DECAY)
    assert longest_after(10.0, 10.5, 10.51, 11.11) == pytest.approx(0.6)
    assert longest_after(10.0, 10.5, 10.5 + LONGEST_STEP_S) == pytest.approx(0.5)
    assert longest_after(10.0, 10.5, 10.5) == pytest.approx(0.5), "two ticks at one stamp"


def forward_after(*steps: tuple[float, bool]) -> float:
    """Each step's stamp, and whether a forward was under way."""
    gap = StepGap()
    for stamp_s, forward in steps:
        gap.tell(stamp_s, forward=forward)
    return gap.forward_s


def test_forwards_between_two_stamps_share_the_time():
    three = [(10.0, True), (10.0, True), (10.0, True), (10.06, True)]
    assert forward_after(*three[:-1]) == 0.0, "nothing is known before the next stamp"
    assert forward_after((4.0, True), *three) == pytest.approx(0.02), "six seconds are a silence"


def test_the_shortest_forward_is_forgotten_slowly():
    """The long ones are others' prefills: no returning agent's load hides behind those."""
    assert forward_after((4.0, True), (10.0, True), (10.3, True), (10.32, True)) == pytest.approx(
        0.02
    )
    grown = forward_after((4.0, True), (10.0, True), (10.02, True), (10.32, True))
    assert grown == pytest.approx(0.02 / DECAY)


def test_time_that_was_not_forwards_alone_says_nothing_of_them():
    idle = [(4.0, True), (10.0, True), (10.0, False), (10.5, True)]
    assert forward_after(*idle) == 0.0
    assert forward_after(*idle, (10.53, True)) == pytest.approx(0.03), "from the next stamp on"
    assert forward_after((4.0, True), (10.0, False), (10.5, False)) == 0.0


def test_a_piece_fills_the_link_for_a_step():
    assert piece_tokens(4096, LINK_TOKENS_PER_S, step_s=0.5) == 63_578
    assert piece_tokens(4096, LINK_TOKENS_PER_S, step_s=0.02) == 4096
    assert piece_tokens(4096, LINK_TOKENS_PER_S, step_s=0.0) == 4096
