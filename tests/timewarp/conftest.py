"""Schedulers in virtual time, each in a process of its own: one holds one."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest


@pytest.fixture(scope="session")
def forking_process() -> Iterator[Callable[..., Any]]:
    """Calls functions in a process that may fork: it has one thread, and imports SGLang once.

    The process of the tests may not: others of them start schedulers and threads in it.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=600)
