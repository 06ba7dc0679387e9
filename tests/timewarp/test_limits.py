"""Requests that declare more than they generate, and end by themselves."""

import pytest

from tests.timewarp.runs import declared, refusals
from tokencake_sglang.timewarp.forks import run_in_fork
from tokencake_sglang.timewarp.requests import END_TOKEN

pytestmark = pytest.mark.slow


def test_the_output_is_exactly_what_was_asked_for(forking_process):
    assert forking_process(run_in_fork, declared, 40, 4096) == (40, 40)


def test_an_output_that_would_not_end_so_is_refused_by_name(forking_process):
    outputs = [[5] * 8, [5, END_TOKEN, 5, END_TOKEN]]
    assert forking_process(run_in_fork, refusals, outputs, 4096) == [
        f"output of r{number}: it declares a limit, so its last token, and no other, must be "
        f"{END_TOKEN}; the last is {last}"
        for number, last in enumerate((5, END_TOKEN))
    ]
