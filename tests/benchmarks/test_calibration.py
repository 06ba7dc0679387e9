"""The committed comparison with the published runs; rerunning it takes minutes, reading it does not."""

import json
from dataclasses import asdict

import pytest

from benchmarks.calibration import published
from benchmarks.calibration.setup import PUBLISHED_SETUP
from tokencake_sglang.timewarp.hardware import load_hardware_profile

RESULT = json.loads(published.RESULT.read_text())
RUNS = {run["rate"]: run for run in RESULT["runs"]}
HELD = ("wall_s", "application_p95_s", "first_prefill_tokens")


def test_it_was_made_with_the_constants_that_are_in_use():
    assert RESULT["hardware"] == json.loads(json.dumps(asdict(load_hardware_profile("a800"))))
    assert RESULT["setup"] == json.loads(json.dumps(PUBLISHED_SETUP.as_dict()))


def test_all_published_rates_are_there():
    assert tuple(RUNS) == PUBLISHED_SETUP.rates == tuple(published.PUBLISHED)


@pytest.mark.parametrize("rate", PUBLISHED_SETUP.rates)
@pytest.mark.parametrize("figure", HELD)
def test_a_figure_is_as_near_to_the_published_one_as_claimed(rate, figure):
    run = RUNS[rate]
    expected = asdict(published.PUBLISHED[rate])[figure]
    assert run["published"][figure] == expected
    assert run["ratio"][figure] == pytest.approx(run["measured"][figure] / expected, abs=1e-3)
    tolerance = EXCEPTIONS.get((rate, figure), published.TOLERANCE)
    assert run["ratio"][figure] == pytest.approx(1.0, abs=tolerance)


EXCEPTIONS = {(0.5, "first_prefill_tokens"): 0.09}
"""What the fit does not reach, and how near it comes."""


@pytest.mark.parametrize("rate", PUBLISHED_SETUP.rates)
def test_the_work_is_the_published_work(rate):
    parts = RUNS[rate]["parts"]
    assert parts["output_tokens"] == 155_136
    assert parts["prompt_tokens"] == pytest.approx(published.PUBLISHED_PROMPT_TOKENS, rel=0.005)


@pytest.mark.parametrize("rate", PUBLISHED_SETUP.rates)
def test_seconds_are_accounted_for(rate):
    """Prefills and decodes follow one another; beside them is only idle time."""
    run = RUNS[rate]
    busy_s = run["parts"]["prefill_s"] + run["parts"]["decode_s"]
    assert 0.95 * run["measured"]["wall_s"] < busy_s <= run["measured"]["wall_s"]


def test_quantiles_are_interpolated():
    assert published.quantile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert published.quantile([1.0, 2.0], 0.95) == pytest.approx(1.95)
    assert published.quantile([7.0], 0.95) == 7.0


def test_a_difference_shows_in_the_table():
    assert "(+" in published.table(RESULT)
    assert len(published.table(RESULT).splitlines()) == 6
