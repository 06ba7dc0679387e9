"""The sets of cells: the standard matrix, and the longer ones beside it."""

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from benchmarks.calibration.setup import PUBLISHED_SETUP
from benchmarks.matrix import store
from benchmarks.matrix.cells import PAGE_TOKENS, Cell
from benchmarks.matrix.machines import A800, H200, H200_32B
from benchmarks.matrix.workloads import WorkloadSpec

DAGS = ("code_writer", "deep_research")
RATES = PUBLISHED_SETUP.rates
SEEDS = range(5)

# Prompts that fit Qwen2.5's window of 131,072; nights and unanswered permission prompts cut.
CLAUDE_CODE = WorkloadSpec(
    source="claude_code",
    arrivals="lanes",
    lanes=16,
    max_prompt_tokens=129_024,
    max_calls=20,
    max_gap_s=600.0,
)

CLAUDE_CODE_SESSIONS = 34
"""So many of the committed slice's are CLAUDE_CODE."""

CLAUDE_CODE_PEAK_TOKENS = 1_479_394
"""The working set of CLAUDE_CODE: the most distinct tokens that its agents' contexts have at once
(benchmarks/workloads/working_set.py). Half of it is also what they have on average."""


def dag(name: str, rate: float, applications: int = 24) -> Cell:
    """A DAG's applications, equally spaced, on the machine of TokenCake's published runs."""
    workload = WorkloadSpec(source=name, applications=applications, arrivals="equal", rate=rate)
    return Cell(id=f"{name}/equal-{rate}", workload=workload, **A800)


def standard() -> Iterator[Cell]:
    """Both DAGs at five rates, two sets of real coding sessions, agents beside chat."""
    for name in DAGS:
        for rate in RATES:
            yield dag(name, rate)
    yield Cell(id="claude_code/lanes-16", workload=CLAUDE_CODE, **H200)
    short_gaps = WorkloadSpec(
        source="agentinfer_swebench", applications=1, arrivals="lanes", lanes=8
    )
    yield Cell(id="agentinfer_swebench/lanes-8", workload=short_gaps, **H200)
    beside = replace(dag("code_writer", 0.1).workload, chat_rate=0.5, chat_s=600.0)
    yield Cell(id="code_writer+chat/equal-0.1", workload=beside, **A800)


def load() -> Iterator[Cell]:
    """Poisson arrivals at shares of the capacity that HiCache was measured to have."""
    for name in DAGS:
        capacity = measured_capacity(name)
        for share in (0.5, 0.8, 0.95):
            for seed in SEEDS:
                workload = WorkloadSpec(
                    source=name,
                    applications=200,
                    arrivals="poisson",
                    rate=round(share * capacity, 6),
                    seed=seed,
                )
                yield Cell(id=f"{name}-load/{share:.0%}-seed-{seed}", workload=workload, **A800)


def measured_capacity(name: str) -> float:
    """Applications a second that ``hicache`` finishes of 24 which come far faster than it can.

    Raises:
        SystemExit: if that run has no committed result.
    """
    overload = dag(name, RATES[-1]).id
    for record in store.read("standard"):
        if (record.cell, record.system) == (overload, "hicache") and record.figures is not None:
            return record.figures["applications"] / record.figures["makespan_s"]
    raise SystemExit(
        f"capacity: no result of hicache on {overload}; first run "
        f"python -m benchmarks.matrix run --cells {overload} --systems hicache"
    )


def limits() -> Iterator[Cell]:
    """Requests that do not know how long their outputs will be, and declare more.

    4,096 tokens are also what SGLang counts at most for a request, declared or not.
    """
    for name in DAGS:
        for rate in (0.2, 1.0):
            base = dag(name, rate)
            workload = replace(base.workload, declared_tokens=4096)
            yield replace(base, id=f"{name}-limits/{rate}", workload=workload)


def noise() -> Iterator[Cell]:
    """Tools that take longer or shorter than was declared."""
    for name in DAGS:
        base = dag(name, 0.2)
        for scale in (0.0, 0.25, 0.5, 1.0):
            for seed in SEEDS if scale else (0,):
                workload = replace(base.workload, tool_noise=scale, seed=seed)
                yield replace(base, id=f"{name}-noise/{scale}-seed-{seed}", workload=workload)


def noise_at_load() -> Iterator[Cell]:
    """The same where the server keeps up: four fifths of its capacity, arriving at random."""
    for name in DAGS:
        for scale in (0.0, 0.25, 0.5, 1.0):
            for seed in SEEDS:
                workload = WorkloadSpec(
                    source=name,
                    applications=48,
                    arrivals="poisson",
                    rate=round(0.8 * measured_capacity(name), 6),
                    tool_noise=scale,
                    seed=seed,
                )
                yield Cell(id=f"{name}-noise-load/{scale}-seed-{seed}", workload=workload, **A800)


def host_size() -> Iterator[Cell]:
    for name in DAGS:
        base = dag(name, 0.2)
        for ratio in (0.5, 1.0, 2.0, 4.0, 10.0):
            tokens = int(ratio * base.pool_tokens)
            yield replace(base, id=f"{name}-host/{ratio:g}x", host_tokens=tokens)


def link_speed() -> Iterator[Cell]:
    for name in DAGS:
        for scale in (0.25, 0.5, 1.0, 2.0):
            yield replace(dag(name, 0.2), id=f"{name}-link/{scale:g}x", link_scale=scale)


def headline() -> Iterator[Cell]:
    """The paper's largest gain: Qwen2.5-32B, code_writer, Poisson arrivals and tool times."""
    for seed in SEEDS:
        workload = WorkloadSpec(
            source="code_writer",
            applications=100,
            arrivals="poisson",
            rate=1.0,
            tool_times="poisson",
            seed=seed,
        )
        yield Cell(id=f"headline/seed-{seed}", workload=workload, **H200_32B)


def sensitivity() -> Iterator[Cell]:
    """Would the ranking be another if the cost model were wrong by a factor of two?"""
    for base in (dag("code_writer", 0.1), dag("code_writer", 1.0), dag("deep_research", 0.2)):
        group = f"sensitivity-{base.id.replace('/', '-')}"
        yield replace(base, id=f"{group}/as-calibrated")
        for scale in (0.5, 2.0):
            yield replace(base, id=f"{group}/compute-{scale:g}x", compute_scale=scale)
            yield replace(base, id=f"{group}/bandwidth-{scale:g}x", bandwidth_scale=scale)


def sessions() -> Iterator[Cell]:
    """Claude Code sessions: with and without hints, with copies that cost nothing, and with a host
    tier that holds too little.

    Sixteen at once of the committed slice; and drawn from the whole data set, where it lies beside
    the checkout, as many sessions sixteen at once, and forty at once, which fill a host tier of
    four pools and not one of eight.
    """
    pool_tokens = H200["pool_tokens"]
    sixteen = Cell(
        id="claude_code-16/none", workload=CLAUDE_CODE, **{**H200, "host_tokens": 4 * pool_tokens}
    )
    yield sixteen
    exact = replace(CLAUDE_CODE, hints="exact")
    yield replace(sixteen, id="claude_code-16/exact", workload=exact)
    yield replace(sixteen, id="claude_code-16/free-copies", link_scale=1000.0)
    half = CLAUDE_CODE_PEAK_TOKENS // 2 // PAGE_TOKENS * PAGE_TOKENS
    yield replace(sixteen, id="claude_code-16/half-host", host_tokens=half)
    for seed in SEEDS:
        drawn = replace(CLAUDE_CODE, whole=True, applications=CLAUDE_CODE_SESSIONS, seed=seed)
        exact = replace(drawn, hints="exact")
        yield replace(sixteen, id=f"claude_code-16-drawn/exact-seed-{seed}", workload=exact)
    for ratio in (4, 8):
        for seed in SEEDS:
            workload = replace(CLAUDE_CODE, whole=True, applications=40, lanes=40, seed=seed)
            yield replace(
                sixteen,
                id=f"claude_code-40/host-{ratio}x-seed-{seed}",
                workload=workload,
                host_tokens=ratio * pool_tokens,
            )


def sharing() -> Iterator[Cell]:
    """Who gets what of a server that is asked for more than it can do: two tenants of the same
    applications, one of few small ones beside one that floods it, critical agents and the others;
    and what it is worth to know how long applications still take.

    Twenty-four applications that come at random.
    """
    crowd = WorkloadSpec(source="code_writer", applications=24, arrivals="poisson", rate=1.0)
    steady = replace(crowd, rate=0.2)
    small = WorkloadSpec(source="small", applications=8, arrivals="equal", rate=1 / 60)
    beside = {"beside": small.applications, "beside_rate": small.rate, "beside_from_s": 60.0}
    yield from _two_seeds("tenants/two", replace(crowd, tenants="a,b"))
    yield from _two_seeds("isolation/beside", replace(crowd, tenants="heavy", **beside))
    yield Cell(id="isolation/alone", workload=replace(small, tenants="light"), **A800)
    for cell in _two_seeds("reserve/code_writer", steady):
        yield replace(cell, critical_apart=True)
    for name in (*DAGS, "uneven"):
        yield from _two_seeds(f"paths/{name}", replace(steady, source=name, unmarked=True))


def _two_seeds(cell_id: str, workload: WorkloadSpec) -> Iterator[Cell]:
    for seed in range(2):
        yield Cell(id=f"{cell_id}-seed-{seed}", workload=replace(workload, seed=seed), **A800)


def check() -> Iterator[Cell]:
    """Small enough to be run again by ``make bench-check``."""
    for name, arrivals, tokens in (
        ("code_writer", "equal", 16_384),
        ("deep_research", "poisson", 24_576),
    ):
        workload = WorkloadSpec(source=name, applications=3, arrivals=arrivals, rate=0.5)
        pools = {"pool_tokens": tokens, "host_tokens": 10 * tokens}
        cell = Cell(id=f"check/{name}", workload=workload, **{**A800, **pools})
        yield cell
    generous = replace(workload, declared_tokens=4096)
    yield replace(cell, id=f"{cell.id}-limits", workload=generous)


SETS: dict[str, Callable[[], Iterator[Cell]]] = {
    "standard": standard,
    "load": load,
    "limits": limits,
    "noise": noise,
    "noise-load": noise_at_load,
    "host": host_size,
    "link": link_speed,
    "headline": headline,
    "sensitivity": sensitivity,
    "sessions": sessions,
    "sharing": sharing,
    "check": check,
}

_OF_SGLANG = "lower-bound,stock,hicache,hicache-lpm,hicache-dfs,hicache-priority"

_FEW = (
    "lower-bound,stock,hicache,hicache-lpm,hicache-dfs,tokencake,reopen-lpm,kvflow,infercept,"
    "oracle-age,oracle-tokencake"
)
"""For the long sets, for which all systems would take many hours. Two oracles: where the tiers are
small it is what they keep that counts, for which `oracle-age` has no rules of its own."""

MATRIX = (
    "lower-bound,stock,stock-*,hicache,hicache-lpm,hicache-dfs,hicache-hrrn,hicache-spf,"
    "hicache-tlru,hicache-priority,tokencake,kvflow,continuum,thunderagent,infercept,mori,"
    "tokencake-paper,tokencake-repo,oracle-age"
)
"""SGLang's own settings, this extension, every rival and an oracle. (The ``eager`` settings are
about limits that are not exact.) ``make bench-long`` adds this extension's halves and variants,
admission that reopens by itself, and other oracles."""

_OF_DAGS = f"{_FEW},hicache-priority"
"""Of SGLang's settings the best on deep_research by P95 and makespan, for it has critical agents:
without it there, best-stock would not be what it says."""

# Response ratio and shortest prefill are best at something here. On the DAGs, as `standard` shows, they
# are far behind. In a crowd another oracle is the best.
_OF_SESSIONS = (
    f"{_FEW},hicache-hrrn,hicache-spf,tokencake-temporal,thunderagent,mori,oracle-shortest"
)

USUAL_SYSTEMS = {
    "check": "lower-bound,stock,hicache-lpm,tokencake",
    "standard": MATRIX,
    "load": _OF_DAGS,
    # Without the oracle, which knows lengths: what it reaches is its result where limits are exact.
    "limits": f"{_OF_SGLANG},hicache-*eager,"
    "tokencake,tokencake-no-headroom,reopen-lpm,kvflow,infercept,thunderagent",
    "noise": f"{_OF_DAGS},tokencake-temporal,oracle-tokencake-temporal",
    "noise-load": f"{_OF_SGLANG},tokencake,tokencake-temporal,oracle-tokencake-temporal",
    "host": _OF_DAGS,
    "link": _OF_DAGS,
    "headline": _OF_DAGS,
    # About the ranking, so with everybody who has been ranked.
    "sensitivity": f"{_OF_DAGS},mori,continuum,thunderagent,tokencake-paper,tokencake-repo",
    "sessions": f"{_OF_SESSIONS},tokencake-lengths,tokencake-lengths-rough",
    "sharing": "lower-bound,stock,hicache,hicache-lpm,tokencake,tokencake-untold,tokencake-weights,"
    "tokencake-tenant-quota,tokencake-reserve*,tokencake-no-paths,tokencake-graphs",
}
"""Systems of a set. Other than these run if they are asked for by name."""

SYSTEMS_OF_GROUP = {
    "claude_code-16": _OF_SESSIONS,  # where nobody waits for room for long
    "claude_code-16-drawn": _OF_SESSIONS,
    "tenants": "lower-bound,hicache,hicache-lpm,tokencake,tokencake-untold,tokencake-weights,"
    "tokencake-tenant-quota",
    "isolation": "lower-bound,stock,hicache,hicache-lpm,tokencake,tokencake-untold",
    "reserve": "lower-bound,tokencake,tokencake-reserve*",
    "paths": "lower-bound,tokencake,tokencake-no-paths,tokencake-graphs",
}
"""Of its set's usual systems those that say something of a group's cells; of other groups all."""


def usual_systems(set_name: str, cell: Cell) -> str:
    """What runs on a cell if nothing is asked for by name, as a pattern."""
    return SYSTEMS_OF_GROUP.get(cell.group, USUAL_SYSTEMS[set_name])


PLOTTED = (
    ("code_writer/equal-0.2", "hicache-lpm"),
    ("code_writer/equal-0.2", "tokencake"),
    ("deep_research/equal-0.2", "hicache-lpm"),
    ("deep_research/equal-0.2", "tokencake"),
)
"""Runs whose occupancy over time and agents' rows are kept, for the plots."""


def cells(set_name: str) -> list[Cell]:
    """The set's cells.

    Raises:
        ValueError: naming the sets there are.
    """
    if set_name not in SETS:
        raise ValueError(f"set: expected one of {', '.join(SETS)}, got {set_name!r}")
    return list(SETS[set_name]())
