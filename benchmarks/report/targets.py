"""What this project set out to reach, beside what was measured, met or not."""

import fnmatch
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.matrix.systems import LOWER_BOUND
from benchmarks.report.metrics import (
    BYTES_TO_HOST,
    MAKESPAN,
    MEAN,
    P95,
    RETURNING,
    RETURNING_P50,
    RETURNING_P95,
    UNTAGGED_P95,
    WASTED,
    WORST_SLOWDOWN,
    Metric,
    number,
)
from benchmarks.report.ranking import geometric_mean
from benchmarks.report.results import BEST_STOCK, ORACLE, Results, is_oracle, points
from benchmarks.report.tables import WHOLE, table

HALF, TOLD_HALF = "tokencake-temporal", "oracle-tokencake-temporal"
SHORTEST, REOPENED = "oracle-shortest", "reopen-lpm"
DECLARED = "tokencake-lengths"
EVERYWHERE_MOST = 1.03
"""No single point may be worse than this where the target is for the mean over all."""

OVERLOAD = ("code_writer/equal-0.2", "deep_research/equal-0.2")
FAR_OVERLOAD = ("code_writer/equal-1.0", "deep_research/equal-1.0")
CROWD = ("claude_code-40/host-4x-*", "claude_code-40/host-8x-*")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``limits`` says how far the figure could go at all, where known."""

    what: str
    target: str
    measured: str
    met: bool
    limits: str = ""

    def cells(self) -> list[str]:
        return [self.what, self.target, self.measured, "yes" if self.met else "**no**", self.limits]


@dataclass(frozen=True, slots=True)
class RatioTarget:
    """A system's multiple of another's value at each of a set's points, in the geometric mean over
    the point's seeds.

    Args:
        cells: patterns of the set's cells.
        most: of every point; or of their geometric mean, where ``most_each`` bounds every point.
        limits: systems whose own multiples say what can be reached at all.
    """

    what: str
    set: str
    cells: tuple[str, ...]
    metric: Metric
    most: float
    system: str = WHOLE
    reference: str = BEST_STOCK
    most_each: float | None = None
    limits: tuple[str, ...] = (ORACLE,)

    def row(self, sets: Mapping[str, Results]) -> Row | None:
        """None without a result of both in every cell."""
        results = sets.get(self.set)
        if results is None:
            return None
        of = ratios(results, self.cells, self.system, self.reference, self.metric)
        if not of:
            return None
        if self.most_each is None:
            met = max(of) <= self.most
            target = f"≤ {self.most:g}" + (" each" if len(of) > 1 else "")
        else:
            met = geometric_mean(of) <= self.most and max(of) <= self.most_each
            target = f"≤ {self.most:g} on average, none > {self.most_each:g}"
        bounds = []
        for name in self.limits:
            reached = ratios(results, self.cells, name, self.reference, self.metric)
            if reached:
                bounds.append(f"`{name}` {spread(reached)}")
        title = self.metric.title.removesuffix(", s")
        return Row(
            f"{self.what}: {title}, of `{self.reference}`'s",
            target,
            spread(of),
            met,
            ", ".join(bounds),
        )


def of_both(
    what: str, set_: str, cells: tuple[str, ...], mean: float, p95: float, **more: Any
) -> Iterator[RatioTarget]:
    """Targets of the mean and of the P95 on the same cells."""
    for metric, most in ((MEAN, mean), (P95, p95)):
        yield RatioTarget(what, set_, cells, metric, most, **more)


TARGETS: tuple[RatioTarget, ...] = (
    *of_both("DAGs at 0.2 and 1.0/s", "standard", OVERLOAD + FAR_OVERLOAD, 0.90, 1.00),
    RatioTarget("DAGs at 0.2 and 1.0/s", "standard", OVERLOAD + FAR_OVERLOAD, MAKESPAN, 0.95),
    RatioTarget(
        "DAGs at 1.0/s",
        "standard",
        FAR_OVERLOAD,
        MEAN,
        0.60,
        reference="hicache",
    ),
    RatioTarget(
        "DAGs at 1.0/s",
        "standard",
        FAR_OVERLOAD,
        MEAN,
        0.37,
        reference="stock",
    ),
    RatioTarget(
        "code_writer at all published rates (the paper has −47.06 % at one)",
        "standard",
        ("code_writer/equal-*",),
        MEAN,
        0.5294,
        reference="stock",
    ),
    *of_both("DAGs at 0.05/s", "standard", ("*[rh]/equal-0.05",), 0.97, 0.95),
    *of_both("Poisson arrivals, 50, 80, 95 % of capacity", "load", ("*",), 0.97, 0.95),
    *of_both(
        "DAGs at all rates, temporal half",
        "standard",
        ("*[rh]/equal-*",),
        1.0,
        1.0,
        system=HALF,
        most_each=EVERYWHERE_MOST,
        limits=(TOLD_HALF,),
    ),
    *of_both(
        "Tools that take other times than declared, overload, temporal half",
        "noise",
        ("*",),
        1.0,
        1.0,
        system=HALF,
        most_each=EVERYWHERE_MOST,
        limits=(TOLD_HALF,),
    ),
    *of_both(
        "The same at 80 % of capacity, temporal half",
        "noise-load",
        ("*",),
        1.0,
        1.0,
        system=HALF,
        most_each=EVERYWHERE_MOST,
        limits=(TOLD_HALF,),
    ),
    RatioTarget(
        "Sixteen sessions, host tier of half the working set",
        "sessions",
        ("claude_code-16/half-host",),
        WASTED,
        0.6,
    ),
    RatioTarget(
        "Forty sessions", "sessions", CROWD, MEAN, 0.85, limits=(SHORTEST, DECLARED, LOWER_BOUND)
    ),
    RatioTarget(
        "Forty sessions",
        "sessions",
        CROWD,
        MAKESPAN,
        0.92,
        limits=(SHORTEST, DECLARED, LOWER_BOUND),
    ),
    RatioTarget(
        "Forty sessions", "sessions", CROWD, P95, 1.03, limits=(SHORTEST, DECLARED, LOWER_BOUND)
    ),
    RatioTarget(
        "Forty sessions", "sessions", CROWD, RETURNING_P95, 0.3, limits=(SHORTEST, DECLARED)
    ),
    RatioTarget("Forty sessions", "sessions", CROWD, WASTED, 1.0, limits=(SHORTEST, DECLARED)),
    RatioTarget(
        "Forty sessions", "sessions", CROWD, WORST_SLOWDOWN, 1.0, limits=(SHORTEST, DECLARED)
    ),
    RatioTarget(
        "Untagged chat beside agents, of first come, first served without a host tier",
        "standard",
        ("code_writer+chat/*",),
        UNTAGGED_P95,
        1.1,
        reference="stock",
        limits=(),
    ),
)


def rows(sets: Mapping[str, Results], folder: Path) -> list[Row]:
    """Of all targets that the results in ``folder`` have something to say of."""
    found = [target.row(sets) for target in TARGETS]
    standard, sessions = sets.get("standard"), sets.get("sessions")
    if standard:
        found += [_short_gaps(standard), *_effective_kv(standard)]
    if sessions:
        floors = _json(folder / "first_token_floor.json")
        loads = _json(folder / "hidden_loads.json")
        found += [
            *_exact_hints(sessions, floors, loads),
            _no_hints(sessions),
            _returning_in_crowds(sessions),
        ]
    found += [_retractions(sets), _rivals(sets), _distance_to_oracle(sets)]
    found += [*_planner(folder / "planner_cost.json"), _untagged(folder / "untagged_cost.json")]
    return [row for row in found if row is not None]


def text(sets: Mapping[str, Results], folder: Path) -> str:
    """The table; empty without any results."""
    found = rows(sets, folder)
    if not found:
        return ""
    header = ["what", "target", "measured", "met", "what could be reached"]
    return table(header, [row.cells() for row in found])


def ratios(
    results: Results, patterns: Iterable[str], system: str, reference: str, metric: Metric
) -> list[float]:
    """For each point that matches, the geometric mean over its seeds of ``system`` as a multiple
    of ``reference``; empty unless both have values above 0 in all of them."""
    cells = [cell for cell in results.cells if any(fnmatch.fnmatch(cell, one) for one in patterns)]
    found = []
    for group in {cell.partition("/")[0]: None for cell in cells}:
        of_group = [cell for cell in cells if cell.partition("/")[0] == group]
        for seeds in points(of_group).values():
            of = []
            for cell in seeds:
                mine = results.value(cell, system, metric)
                other = results.value(cell, reference, metric)
                if not mine or not other:
                    return []
                of.append(mine / other)
            found.append(geometric_mean(of))
    return found


def spread(of: Sequence[float]) -> str:
    mean = f"{geometric_mean(of):.3f}"
    return mean if len(of) == 1 else f"{mean} ({min(of):.3f}–{max(of):.3f})"


# -- what is no ratio of two systems' figures -----------------------------------------------------


def _short_gaps(standard: Results) -> Row | None:
    """Where tools answer at once, nothing may be lost, and nothing should move."""
    cell = "agentinfer_swebench/lanes-8"
    figures = standard.figures(cell, WHOLE)
    ratio = standard.ratio(cell, WHOLE, MEAN)
    mine = standard.value(cell, WHOLE, BYTES_TO_HOST)
    hicache = standard.value(cell, "hicache", BYTES_TO_HOST)
    if figures is None or ratio is None or mine is None or hicache is None:
        return None
    uploads = sum(
        count
        for decision, count in figures["decisions"].items()
        if decision.startswith("upload.") and decision != "upload.no_room"
    )
    released = figures["decisions"].get("release.in_call", 0)
    return Row(
        f"`{cell}`, calls that hardly last: mean of `{BEST_STOCK}`'s; releases in calls; uploads; "
        "copied to the host",
        "0.99 to 1.01; 0; 0; no more than `hicache`",
        f"{ratio:.3f}; {released}; {uploads}; {mine / hicache:.3f} ×",
        0.99 <= ratio <= 1.01 and not released and not uploads and mine <= hicache,
        "SGLang's own eviction releases",
    )


def _retractions(sets: Mapping[str, Results]) -> Row | None:
    """Over all cells of all sets that both have run."""
    mine, theirs = [], []
    for results in sets.values():
        for cell in results.cells:
            ours, hicache = results.figures(cell, WHOLE), results.figures(cell, "hicache")
            if ours is not None and hicache is not None:
                mine.append(ours["retractions"])
                theirs.append(hicache["retractions"])
    if not mine:
        return None
    return Row(
        "Retractions, all runs of all sets",
        "≤ 0.1 × `hicache`'s",
        f"{sum(mine)}; `hicache` {sum(theirs)}; in {len(mine)} runs of each",
        sum(mine) <= 0.1 * sum(theirs),
    )


def _effective_kv(standard: Results) -> Iterator[Row]:
    gains, most = [], []
    for cell in standard.cells:
        mine, stock = standard.figures(cell, WHOLE), standard.figures(cell, "stock")
        if "/equal-" in cell and "+" not in cell and mine is not None and stock is not None:
            gains.append(100 * (mine["kv"]["effective"] - stock["kv"]["effective"]))
            most.append(100 * (1 - stock["kv"]["effective"]))
    if gains:
        yield Row(
            "DAGs: effective KV, points over `stock`",
            "≥ 16.9 each",
            f"{min(gains):+.1f} to {max(gains):+.1f}",
            min(gains) >= 16.9,
            f"all of the pool: {min(most):+.1f} to {max(most):+.1f}",
        )


def _exact_hints(
    sessions: Results,
    floors: Mapping[str, Mapping[str, float]],
    loads: Mapping[str, Mapping[str, Any]],
) -> Iterator[Row]:
    """The committed slice's, and the drawn ones together.

    Args:
        floors: by cell what first tokens would take if each turn were alone on the server.
        loads: by cell what ``benchmarks.hidden_loads`` found. With copies that take no time nothing
            is left to hide: what hiding can bring at most.
    """
    cells = ("claude_code-16/exact", "claude_code-16-drawn/exact-*")
    free = {cell: of["free_copies_first_token_s"] for cell, of in loads.items()}
    what = "Sixteen sessions, exact hints"
    for metric, most in ((RETURNING_P50, 0.5), (RETURNING, 0.82), (RETURNING_P95, 1.0)):
        mine = ratios(sessions, cells, WHOLE, BEST_STOCK, metric)
        if not mine:
            return
        others = {
            f"`{HALF}`": ratios(sessions, cells, HALF, BEST_STOCK, metric),
            f"`{REOPENED}`": ratios(sessions, cells, REOPENED, BEST_STOCK, metric),
        }
        others["copies that take no time"] = _multiples(sessions, cells, metric, free)
        others["each turn alone on the server"] = _multiples(sessions, cells, metric, floors)
        yield Row(
            f"{what}: {metric.title.removesuffix(', s')}, of `{BEST_STOCK}`'s",
            f"≤ {most:g}" + (" each" if len(mine) > 1 else ""),
            spread(mine),
            max(mine) <= most,
            ", ".join(f"{name} {spread(of)}" for name, of in others.items() if of),
        )
    figures = [
        of_cell
        for cell in sessions.cells
        if any(fnmatch.fnmatch(cell, one) for one in cells)
        and (of_cell := sessions.figures(cell, WHOLE)) is not None
    ]
    waited_s = sum(of["transfers"]["exposed_wait_s"] for of in figures)
    hidden = 1 - waited_s / sum(of["transfers"]["to_device_busy_s"] for of in figures)
    yield Row(
        f"{what}: time of copies to the device that no forward waits for",
        "≥ 95 %",
        f"{100 * hidden:.0f} %",
        hidden >= 0.95,
        f"forwards wait {waited_s:.0f} s of {sum(of['makespan_s'] for of in figures):,.0f}"
        + _why_not_hidden(loads),
    )
    counts: Counter[str] = Counter()
    for of_cell in figures:
        counts.update(of_cell["decisions"])
    in_time, late = counts["return.uploaded_in_time"], counts["return.upload_late"]
    holds = sum(count for name, count in counts.items() if name.startswith("unhold."))
    wasted = holds - counts["unhold.admitted"]
    uploads = counts["upload.return_predicted"] + counts["upload.call_finished"]
    if in_time + late and uploads:
        yield Row(
            f"{what}: wanted uploads not there in time; holds let go unused, of uploads",
            "≤ 5 %; ≤ 5 %",
            f"{late} of {in_time + late}; {wasted} of {uploads}",
            late <= 0.05 * (in_time + late) and wasted <= 0.05 * uploads,
            f"{counts['upload.no_room']} times no room",
        )


def _why_not_hidden(loads: Mapping[str, Mapping[str, Any]]) -> str:
    """Of the tokens that were loaded at admission, the part that the queue or the pool kept back."""
    tokens: Counter[str] = Counter()
    for of_cell in loads.values():
        for reason, loaded in of_cell["loaded_at_admission"].items():
            tokens[reason] += loaded["tokens"]
    if not tokens:
        return ""
    queued, no_room = (100 * tokens[why] / tokens.total() for why in ("queue_waits", "no_room"))
    return (
        f"; of what is loaded at admission {queued:.0f} % fell due while requests queued for memory or "
        f"for their turn, {no_room:.0f} % found no room"
    )


def _multiples(
    sessions: Results,
    patterns: Sequence[str],
    metric: Metric,
    seconds: Mapping[str, Mapping[str, float]],
) -> list[float]:
    """Of each point what ``seconds`` has by cell as a multiple of best-stock's, as ``ratios`` has a
    system's."""
    found = []
    for pattern in patterns:
        multiples = [
            seconds[cell][metric.path[-1]] / best
            for cell in sessions.cells
            if fnmatch.fnmatch(cell, pattern)
            and cell in seconds
            and (best := sessions.value(cell, BEST_STOCK, metric))
        ]
        if multiples:
            found.append(geometric_mean(multiples))
    return found


def _json(file: Path) -> Any:
    """What the file holds; nothing where it is missing."""
    return json.loads(file.read_text()) if file.exists() else {}


def _no_hints(sessions: Results) -> Row | None:
    """Of what the best of all that are told nothing gains over best-stock, the part that is gained."""
    cell = "claude_code-16/none"
    best, mine = (sessions.value(cell, name, RETURNING) for name in (BEST_STOCK, WHOLE))
    half = sessions.value(cell, HALF, RETURNING)
    values = {
        name: value
        for name in sessions.systems([cell])
        if not is_oracle(name) and (value := sessions.value(cell, name, RETURNING)) is not None
    }
    if not values or best is None or mine is None or min(values.values()) >= best:
        return None
    first = RETURNING.best(values)

    def gained(value: float) -> float:
        return 100 * (best - value) / (best - values[first])

    return Row(
        f"Sixteen sessions, no hints: {RETURNING.title.removesuffix(', s')}, "
        "of what the best without hints gains",
        "≥ 80 %",
        f"{gained(mine):.0f} %",
        gained(mine) >= 80,
        f"`{first}` {values[first] / best:.2f} of `{BEST_STOCK}`'s"
        + ("" if half is None else f"; `{HALF}` gains {gained(half):.0f} %"),
    )


def _returning_in_crowds(sessions: Results) -> Row | None:
    """In seconds, and as all others the geometric mean of a point's drawings."""
    values = {
        point: [sessions.value(cell, WHOLE, RETURNING_P50) for cell in cells]
        for point, cells in _points(sessions).items()
        if point.startswith("claude_code-40/")
    }
    means = [
        geometric_mean([value for value in of if value]) for of in values.values() if of and all(of)
    ]
    if not means:
        return None
    every = [value for of in values.values() for value in of if value]
    return Row(
        f"Forty sessions: {RETURNING_P50.title}",
        "≤ 0.8 each",
        f"{number(min(means))} to {number(max(means))} "
        f"(single drawings {number(min(every))} to {number(max(every))})",
        max(means) <= 0.8,
    )


def _rivals(sets: Mapping[str, Results]) -> Row | None:
    """Over all sets: the points at which a published rival is the farthest ahead."""
    ahead: list[tuple[float, str]] = []
    for results in sets.values():
        rivals = [
            name
            for name in results.systems(results.cells)
            if name not in results.stock and not is_oracle(name) and not name.startswith(WHOLE)
        ] + [name for name in ("tokencake-paper", "tokencake-repo") if name in _all(results)]
        for point, cells in _points(results).items():
            for name in rivals:
                for metric in (MEAN, P95):
                    of = ratios(results, cells, WHOLE, name, metric)
                    if of:
                        title = "mean" if metric is MEAN else "P95"
                        ahead.append((of[0], f"`{name}` {of[0]:.2f} ({point}, {title})"))
    if not ahead:
        return None
    worst = sorted(ahead, reverse=True)
    behind = [what for ratio, what in worst if ratio > EVERYWHERE_MOST]
    return Row(
        "Mean and P95, of each rival's, at all points where it has run",
        f"none > {EVERYWHERE_MOST:g}",
        f"{len(behind)} of {len(ahead):,}: {', '.join(behind)}" if behind else worst[0][1],
        not behind,
    )


def _distance_to_oracle(sets: Mapping[str, Results]) -> Row | None:
    found: list[tuple[float, str]] = []
    for results in sets.values():
        for point, cells in _points(results).items():
            of = ratios(results, cells, WHOLE, ORACLE, MEAN)
            if of:
                found.append((of[0], point))
    if not found:
        return None
    beyond = [f"{point} {ratio:.2f}" for ratio, point in sorted(found, reverse=True) if ratio > 1.1]
    median = sorted(ratio for ratio, _ in found)[len(found) // 2]
    return Row(
        f"Mean, of `{ORACLE}`'s, at all points where one has run",
        "none > 1.1",
        f"median {median:.3f}; beyond: {', '.join(beyond) or 'none'} of {len(found)}",
        not beyond,
    )


def _points(results: Results) -> dict[str, list[str]]:
    """All points by their whole names, each with the cells of its seeds."""
    return {
        f"{group}/{point}": cells
        for group, of_group in results.groups.items()
        for point, cells in points(of_group).items()
    }


def _all(results: Results) -> set[str]:
    return {system for _, system in results.records}


def _planner(file: Path) -> Iterator[Row]:
    if not file.exists():
        return
    cost = json.loads(file.read_text())
    steps = cost["steps"]
    for name, what, most in (
        ("no agents", "Planner, nobody known", 5),
        ("stalled", "Planner, 1,000 stalled agents", 50),
        ("stalled, long contexts", "Planner, 1,000 stalled agents of 4,096 tokens each", 50),
        ("stalled, host tier full", "Planner, 1,000 stalled agents, host tier full", 50),
    ):
        us, loads = steps[name]["step_and_ticks_us"], steps[name].get("of_which_sglangs_loads_us")
        beside = [f"SGLang's own loads {loads['mean']:.0f}"] if loads and loads["mean"] else []
        if rest := steps[name].get("rest_of_scheduler_us"):
            beside.append(f"the rest of the scheduler {rest['mean']:.0f}")
        if len(means := steps[name].get("means_us_of_runs", ())) > 1:
            beside.append(f"runs {min(means):.1f} to {max(means):.1f}")
        yield Row(
            f"{what}: µs a step, mean",
            f"≤ {most}",
            f"{us['mean']:.1f} (median {us['median']:.1f})",
            us["mean"] <= most,
            "; ".join(beside),
        )
    bytes_ = cost["memory"]["bytes_per_agent"]
    yield Row("Planner: bytes an agent", "≤ 2,048", f"{bytes_:,}", bytes_ <= 2048)


def _untagged(file: Path) -> Row | None:
    if not file.exists():
        return None
    cost = json.loads(file.read_text())
    shares = [load["more_than_stock_of_a_forward"]["median"] for load in cost["loads"].values()]
    return Row(
        "Requests without tags: ends as with `hicache`; processor time, of a step with its forward",
        "the same; ≤ 2 %",
        f"the same; {100 * min(shares):.1f} to {100 * max(shares):.1f} %",
        max(shares) <= cost["most_share"],
    )
