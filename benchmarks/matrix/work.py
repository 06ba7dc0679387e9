"""Equal work: what makes the systems of a cell comparable at all."""

from collections.abc import Iterable
from typing import Any

from benchmarks.matrix.store import Record
from benchmarks.matrix.systems import LOWER_BOUND
from tokencake_sglang.replay.workload import Workload


class UnequalWork(AssertionError):
    """A run that did other work than the workload asks for."""


def check_work(workload: Workload, figures: dict[str, Any]) -> None:
    """Equal work: every request was served, with its whole prompt and its whole output."""
    expected = {
        "requests": len(workload.requests),
        "output_tokens": workload.output_tokens,
        "hits.prompt_tokens": workload.prompt_tokens,
    }
    for name, count in expected.items():
        value: Any = figures
        for part in name.split("."):
            value = value[part]
        if value != count:
            raise UnequalWork(f"{name}: the workload has {count}, the run {value}")


def unequal_work(records: Iterable[Record]) -> list[str]:
    """Where systems of one cell did not do the same work; empty if all is well."""
    first: dict[str, Record] = {}
    problems = []
    for record in records:
        if record.figures is None or record.system == LOWER_BOUND:
            continue
        other = first.setdefault(record.cell, record)
        for what, mine, theirs in zip(
            ("workload", "requests", "output_tokens"), _work(record), _work(other), strict=True
        ):
            if mine != theirs:
                problems.append(
                    f"{record.cell}: {what} is {mine} for {record.system}, "
                    f"{theirs} for {other.system}"
                )
    return problems


def _work(record: Record) -> tuple[Any, ...]:
    assert record.figures is not None
    return record.workload, record.figures["requests"], record.figures["output_tokens"]
