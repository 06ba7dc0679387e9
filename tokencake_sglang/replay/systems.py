"""Named ways to serve: SGLang's own settings, and this extension's."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class System:
    """A configuration of the same engine.

    ``host_tier``: whether there is a host tier (HiCache, write-through). ``flags``: what
    ``python -m sglang.launch_server`` would be given beside it. ``stock``: SGLang without this
    extension, a candidate for the best of SGLang's own settings.
    """

    name: str
    what: str
    host_tier: bool = True
    flags: tuple[str, ...] = ()
    stock: bool = False
    priorities: bool = False
    """Whether requests carry SGLang's ``priority``: 1 for a critical agent's, 0 for all others."""
    exact_hints: bool = False
    """Whether the server is told how long each tool call will really take."""
    tenants: bool | None = None
    """Whether tags name the workload's tenants; None: yes. None is no part of a result's setting."""
    graphs: bool | None = None
    """Whether applications declare their graphs, with times; None: no."""
    lengths: float | None = None
    """Whether applications declare what they will generate in all, and how far off that is: the
    standard deviation of its binary logarithm. None: they do not."""


def _stock(name: str, what: str, host_tier: bool, *flags: str, priorities: bool = False) -> System:
    return System(name, what, host_tier, flags, True, priorities)


# Priorities are 0 and 1; at SGLang's default threshold of 10 nobody would be preempted.
_PRIORITY = (
    *("--enable-priority-scheduling", "--priority-scheduling-preemption-threshold", "0"),
    *("--radix-eviction-policy", "priority"),
)

# The values of SGLang's own documentation.
_TLRU_CONFIG = '{"threshold": 4096, "next_prompt_estimate": 512}'
_TLRU = ("--radix-eviction-policy", "tlru", "--radix-eviction-policy-config", _TLRU_CONFIG)

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        _stock("stock", "SGLang's defaults: first come, first served, no host tier", False),
        _stock("stock-lpm", "longest prefix match first", False, "--schedule-policy", "lpm"),
        _stock("stock-dfs", "depth-first by weight", False, "--schedule-policy", "dfs-weight"),
        _stock("stock-tlru", "tail-optimised LRU", False, *_TLRU),
        _stock("stock-priority", "critical agents' priority", False, *_PRIORITY, priorities=True),
        _stock("hicache", "SGLang's defaults with HiCache, write-through", True),
        _stock("hicache-lpm", "longest prefix match first", True, "--schedule-policy", "lpm"),
        _stock("hicache-dfs", "depth-first by weight", True, "--schedule-policy", "dfs-weight"),
        _stock("hicache-hrrn", "highest response ratio next", True, "--schedule-policy", "hrrn"),
        _stock(
            "hicache-spf",
            "shortest prefill first, which shares a step with a prompt in chunks",
            True,
            *("--schedule-policy", "shortest-prefill-first"),
        ),
        _stock("hicache-tlru", "tail-optimised LRU", True, *_TLRU),
        _stock("hicache-priority", "critical agents' priority", True, *_PRIORITY, priorities=True),
        *(
            _stock(
                f"{name}-eager",
                f"`{name}`, and running requests are expected to stay far from their limits",
                True,
                *flags,
                *("--schedule-conservativeness", "0.3"),
            )
            for name, flags in (
                ("hicache", ()),
                ("hicache-lpm", ("--schedule-policy", "lpm")),
                ("hicache-dfs", ("--schedule-policy", "dfs-weight")),
            )
        ),
        System("tokencake", "this extension, both halves", True, ("--enable-tokencake",)),
        System(
            "tokencake-temporal",
            "this extension without its spatial half, SGLang's longest prefix match first",
            True,
            ("--enable-tokencake", "--tokencake-spatial", "off", "--schedule-policy", "lpm"),
        ),
        System(
            "tokencake-spatial",
            "this extension without its temporal half",
            True,
            ("--enable-tokencake", "--tokencake-temporal", "off"),
        ),
    )
}
