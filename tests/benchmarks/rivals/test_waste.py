"""InferCept's formulas on worked examples (arXiv 2402.01869; scheduler_v2.py, discard_waste)."""

import pytest

from benchmarks.rivals.waste import Profile, discard_waste, preserve_waste


def test_preserving_wastes_the_context_for_the_remaining_time():
    assert preserve_waste(8_000, 2.5) == 20_000.0
    assert preserve_waste(8_000, -1.0) == 0.0


def test_discarding_wastes_what_recomputing_in_chunks_holds():
    profile = Profile(a=1e-3, c=0.016, saturation=100)
    # h = 100 - 20 = 80; 200 tokens are 2 chunks and 40 tokens; f(100) = 0.116 s.
    # 0.116 * (80 + 160) + 0.001 * 80 * 2 * 5000 + 0.001 * 40 * (5000 + 40)
    assert discard_waste(200, 20, 5_000, profile) == pytest.approx(27.84 + 800.0 + 201.6)


def test_discarding_with_the_published_constants():
    # h = 384 - 184 = 200, 1000 tokens: 4 chunks and nothing beside; f(384) = 26.1136 ms
    expected = 0.0261136 * 4 * 5 / 2 * 200 + 0.0279e-3 * 200 * 4 * 30_000
    assert discard_waste(1_000, 184, 30_000, Profile()) == pytest.approx(expected)


def test_the_profile_is_fitted_to_a_roofline():
    fitted = Profile.fitted(lambda new, context: 0.002 + max(0.020, new * 1e-4))
    assert (fitted.a, fitted.c) == pytest.approx((1e-4, 0.002))
    assert fitted.saturation == 200
