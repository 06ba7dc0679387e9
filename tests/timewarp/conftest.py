"""Schedulers in virtual time, each in a process of its own: one holds one."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from tokencake_sglang.plugin import RESOLVED_VARIABLE


def forget_settings() -> None:
    """Those of a scheduler that another test has started in the process of the tests."""
    os.environ.pop(RESOLVED_VARIABLE, None)


@pytest.fixture(scope="session")
def forking_process() -> Iterator[Callable[..., Any]]:
    """Calls functions in a process that may fork: it has one thread, and imports SGLang once.

    The process of the tests may not: others of them start schedulers and threads in it.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=forget_settings) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=600)
