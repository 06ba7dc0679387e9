"""What a prompt in chunks leaves to shorter ones of a prefill step."""

from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.spatial.prefill_share import SHARE, Short, shared_tokens

PLENTY = 1_000_000


def shared(
    *waiting: Short, places=100, left_tokens=60_000, memory_tokens=PLENTY, page_size=16
) -> int:
    return shared_tokens(
        waiting,
        places=places,
        left_tokens=left_tokens,
        step_tokens=8192,
        memory_tokens=memory_tokens,
        page_size=page_size,
    )


def test_a_short_prompt_gets_what_it_needs_in_whole_pages():
    assert shared(Short(100, 5000)) == 112


def test_nobody_waits_nothing_is_left():
    assert shared() == 0


def test_one_that_has_no_less_to_prefill_gets_nothing():
    assert shared(Short(500, 500), left_tokens=500) == 0


def test_what_does_not_fit_whole_is_passed_over():
    assert shared(Short(4097, 4097), Short(160, 160)) == 160


def test_it_is_never_more_than_half_a_step():
    assert shared(*[Short(1600, 1600)] * 4) == 3200


def test_one_without_memory_gets_nothing():
    assert shared(Short(100, 5000), Short(100, 400), memory_tokens=500) == 112


def test_no_more_get_something_than_can_be_admitted():
    assert shared(Short(100, 100), Short(100, 100), Short(100, 100), places=2) == 224
    assert shared(Short(100, 100), places=0) == shared(Short(100, 100), places=-3) == 0


@given(
    st.lists(st.builds(Short, st.integers(0, 10_000), st.integers(0, 50_000)), max_size=20),
    st.integers(0, 100_000),
    st.integers(1, 16_384),
    st.integers(-1000, 100_000),
    st.sampled_from([1, 16, 64]),
)
def test_at_least_half_of_a_step_stays(waiting, left, step, memory, page):
    got = shared_tokens(
        waiting, places=9, left_tokens=left, step_tokens=step, memory_tokens=memory, page_size=page
    )
    assert got % page == 0
    assert 0 <= got <= SHARE * step
    if memory < min((short.held_tokens for short in waiting), default=0):
        assert got == 0
