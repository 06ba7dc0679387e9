"""Who competes: SGLang's own settings, this extension, and the rivals."""

import dataclasses
import fnmatch
from typing import Any

from tokencake_sglang.replay.systems import SYSTEMS, System

LOWER_BOUND = "lower-bound"
"""Not a system but what no server can be better than; computed from the workload alone."""


def _variant(name: str, what: str, *flags: str) -> System:
    return System(f"tokencake-{name}", what, flags=("--enable-tokencake", *flags))


def _without(part: str, what: str) -> System:
    return _variant(f"no-{part}", what, "--tokencake-without", part)


VARIANTS: dict[str, System] = {
    system.name: system
    for system in (
        _variant(
            "reserve", "with a reserve of a tenth of the pool", "--tokencake-reserve-max", "0.1"
        ),
        _variant(
            "chat-places",
            "with untagged requests in the places that SGLang gives them",
            "--tokencake-untagged-weight",
            "0",
        ),
        _variant(
            "chat-target",
            "with a target of 2 s for untagged requests' first token",
            "--tokencake-untagged-first-token-s",
            "2",
        ),
        _variant(
            "reserve-0.2", "with a reserve of a fifth of the pool", "--tokencake-reserve-max", "0.2"
        ),
        _variant(
            "reserve-by-type",
            "with a reserve of a fifth of the pool, of which programmers have half and revisers a "
            "quarter",
            *("--tokencake-reserve-max", "0.2"),
            *("--tokencake-quotas", "programmer=0.5,reviser=0.25"),
        ),
        _variant("weights", "with weights of 2 to 1", "--tokencake-tenants", "a=2,b=1"),
        _variant(
            "tenant-quota",
            "with a quota of a quarter of the pool for one tenant",
            "--tokencake-tenant-quotas",
            "b=0.25",
        ),
        System(
            "tokencake-untold",
            "told of no tenants",
            flags=("--enable-tokencake",),
            tenants=False,
        ),
        System(
            "tokencake-graphs",
            "told of applications' graphs, with the time that each node takes alone",
            flags=("--enable-tokencake",),
            graphs=True,
        ),
        System(
            "tokencake-lengths",
            "told how many tokens each application will generate in all",
            flags=("--enable-tokencake",),
            lengths=0.0,
        ),
        System(
            "tokencake-lengths-rough",
            "told how many tokens each application will generate in all, wrong by a factor of two "
            "either way (one standard deviation)",
            flags=("--enable-tokencake",),
            lengths=1.0,
        ),
        _without("order", "the queue in SGLang's order"),
        _without("paths", "nothing known of remaining paths"),
        _without("working-set", "no application waits outside"),
        _without("reopening", "admission tried again when SGLang does"),
        _without("sharing", "a prompt in chunks has each step to itself"),
        _without("headroom", "room for answers by their declared limits"),
        _without("eviction", "SGLang's LRU evicts"),
        _without("uploads", "nothing uploaded before its request is admitted"),
        _without("load-fence", "each load waits for the forward under way"),
        System(
            "oracle-tokencake",
            "this extension, told how long each call will take",
            flags=("--enable-tokencake",),
            exact_hints=True,
        ),
        System(
            "oracle-tokencake-temporal",
            "its temporal half alone, told how long each call will take",
            flags=SYSTEMS["tokencake-temporal"].flags,
            exact_hints=True,
        ),
    )
}
"""This extension with one thing changed, to see what that is worth. The last two bound what
better predictions could bring, and are among the oracles."""


def rivals() -> dict[str, System]:
    """The systems of ``benchmarks/rivals``; none where that package is missing."""
    try:
        from benchmarks.rivals import RIVALS
    except ModuleNotFoundError as error:
        if error.name != "benchmarks.rivals":
            raise
        return {}
    return dict(RIVALS)


def all_systems() -> dict[str, System]:
    """Everything that can serve a cell, by name.

    Raises:
        ValueError: if a rival has the name of a system there is.
    """
    own, others = {**SYSTEMS, **VARIANTS}, rivals()
    if both := own.keys() & others.keys():
        raise ValueError(f"rivals: these names are taken: {', '.join(sorted(both))}")
    return {**own, **others}


def names(pattern: str = "*") -> list[str]:
    """Names of systems that match one of the comma-separated patterns, the bound included.

    Raises:
        ValueError: for a pattern that matches none.
    """
    return matching([LOWER_BOUND, *all_systems()], pattern, "systems")


def matching(candidates: list[str], pattern: str, what: str) -> list[str]:
    """Those of ``candidates``, in their order, that a comma-separated pattern matches."""
    chosen: set[str] = set()
    for part in pattern.split(","):
        found = fnmatch.filter(candidates, part)
        if not found:
            raise ValueError(f"{what}: {part!r} matches none of {', '.join(candidates)}")
        chosen.update(found)
    return [name for name in candidates if name in chosen]


def setting(system: System) -> dict[str, Any]:
    """What a result says of its system: every field but the prose, as JSON.

    A function is named, for its code is in the fingerprint.
    """
    values = {
        field.name: getattr(system, field.name)
        for field in dataclasses.fields(system)
        if field.name not in ("name", "what")
    }
    return {
        name: f"{value.__module__}.{value.__qualname__}" if callable(value) else _plain(value)
        for name, value in values.items()
        if value is not None
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
