"""Markdown tables. Every function returns a whole table, or "" where there is nothing to show."""

from collections.abc import Callable, Sequence

from benchmarks.matrix.systems import LOWER_BOUND, VARIANTS
from benchmarks.report.metrics import HEADLINES, MEAN, Metric, number
from benchmarks.report.ranking import geometric_mean
from benchmarks.report.results import BEST_STOCK, DERIVED, ORACLE, Results, is_oracle, points
from tokencake_sglang.replay.systems import SYSTEMS

DEFAULT = "stock"
"""SGLang as it comes."""

WHOLE = "tokencake"

OWN = [name for name in (*SYSTEMS, *VARIANTS) if name.startswith(f"{WHOLE}-")]
"""This extension's halves and variants; its namesakes among the rivals are not in it."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def opening(results: Results) -> str:
    """For each cell the best of SGLang's own settings by each metric, against its defaults."""
    rows = []
    for cell in results.cells:
        entries = [_own_best(results, cell, metric) for metric in HEADLINES]
        if any(entries):
            rows.append([f"`{cell}`", *(entry or "–" for entry in entries)])
    return table(["workload", *(metric.title for metric in HEADLINES)], rows)


def _own_best(results: Results, cell: str, metric: Metric) -> str:
    values = results.candidates(cell, BEST_STOCK, metric)
    if not values:
        return ""
    best = metric.best(values)
    text = f"{number(values[best])} `{best}`"
    default = values.get(DEFAULT)
    if default and best != DEFAULT:
        text += f" ({values[best] / default:.2f} × {number(default)})"
    return text


def gains(sets: Sequence[Results], system: str = "tokencake") -> str:
    """The system's multiples of SGLang's defaults and of best-stock, by workload.

    Geometric means over a workload's cells, such as rates of arrival; of those in which not all
    systems have run, none counts.
    """
    rows = [_gains(results, group, system) for results in sets for group in results.groups]
    against = [metric.title.removesuffix(", s") for metric in HEADLINES]
    header = ["workload", f"{against[0]}, × defaults", *against]
    return table(header, [row for row in rows if row])


def _gains(results: Results, group: str, system: str) -> list[str]:
    cells = results.complete(results.groups[group])
    columns: list[list[float]] = [
        [
            value / default
            for cell in cells
            if (value := results.value(cell, system, MEAN)) is not None
            and (default := results.value(cell, DEFAULT, MEAN))
        ],
        *(
            [r for cell in cells if (r := results.ratio(cell, system, metric)) is not None]
            for metric in HEADLINES
        ),
    ]
    if not cells or not all(len(column) == len(cells) for column in columns):
        return []
    rates = len(points(cells))
    name = f"{group}, {rates} rates" if rates > 1 else group
    return [name, *(f"{geometric_mean(column):.2f}" for column in columns)]


def by_cell(results: Results, cells: Sequence[str], metric: Metric) -> str:
    """Systems against cells: the value, and in brackets the ratio to best-stock. Best is bold."""
    if not results.candidates(cells[0], BEST_STOCK, metric) and len(cells) == 1:
        return ""
    names = [*results.contenders(cells), *DERIVED]
    if any(metric.of(results.figures(cell, LOWER_BOUND)) is not None for cell in cells):
        names.append(LOWER_BOUND)
    best = {cell: _winner(results, cell, metric) for cell in cells}
    rows = []
    for name in names:
        values = [results.value(cell, name, metric) for cell in cells]
        if all(value is None for value in values):
            continue
        entries = []
        for cell, value in zip(cells, values, strict=True):
            text = number(value)
            ratio = results.ratio(cell, name, metric)
            if value is not None and ratio is not None and name != BEST_STOCK:
                text += f" ({ratio:.2f})"
            entries.append(f"**{text}**" if best[cell] == name else text)
        rows.append([_shown(name), *entries])
    return table(["system", *(_column(cell) for cell in cells)], rows)


def _column(cell: str) -> str:
    return cell.partition("/")[2].removeprefix("equal-")


def _winner(results: Results, cell: str, metric: Metric) -> str | None:
    """The best system that could exist: no oracle, no bound."""
    values = {
        name: value
        for name in results.contenders([cell])
        if not is_oracle(name) and (value := results.value(cell, name, metric)) is not None
    }
    return metric.best(values) if values else None


def _shown(name: str) -> str:
    return f"*{name}*" if name in DERIVED or name == LOWER_BOUND else f"`{name}`"


def _shown_as(form: Callable[[float], str], path: tuple[str, ...]) -> Callable[[dict], str]:
    metric = Metric("", path)

    def show(figures: dict) -> str:
        value = metric.of(figures)
        return "–" if value is None else form(value)

    return show


def _thousands(*path: str) -> Callable[[dict], str]:
    return _shown_as(lambda value: f"{value / 1000:,.0f}", path)


def _plain(*path: str) -> Callable[[dict], str]:
    metric = Metric("", path)
    return lambda figures: number(metric.of(figures))


def _per_cent(*path: str) -> Callable[[dict], str]:
    return _shown_as(lambda value: f"{100 * value:.1f}", path)


def _gigabytes(*path: str) -> Callable[[dict], str]:
    return _shown_as(lambda value: number(value / 1e9), path)


def _hit_share(tier: str) -> Callable[[dict], str]:
    def show(figures: dict) -> str:
        hits = figures.get("hits", {})
        if not hits.get("prompt_tokens") or tier not in hits:
            return "–"
        return f"{100 * hits[tier] / hits['prompt_tokens']:.1f}"

    return show


_Columns = tuple[tuple[str, Callable[[dict], str]], ...]

SERVICE: _Columns = (
    ("end to end, mean, s", _plain("end_to_end_s", "mean")),
    ("P95", _plain("end_to_end_s", "p95")),
    ("makespan", _plain("makespan_s")),
    ("returning first token, mean, s", _plain("first_token_s", "returning", "mean")),
    ("P95", _plain("first_token_s", "returning", "p95")),
    ("Jain", _plain("fairness", "jain")),
    ("worst slowdown", _plain("fairness", "worst_slowdown")),
)
"""What users feel."""

BACKGROUND: _Columns = (
    ("agents, end to end, mean, s", _plain("end_to_end_s", "mean")),
    ("chat, first token, P50, s", _plain("first_token_s", "untagged", "p50")),
    ("P95", _plain("first_token_s", "untagged", "p95")),
    ("chat, end to end, mean, s", _plain("background_s", "mean")),
    ("P50", _plain("background_s", "p50")),
    ("P95", _plain("background_s", "p95")),
    ("longest", _plain("background_s", "max")),
)
"""Untagged requests beside agents."""

MACHINE: _Columns = (
    ("prefill, k tokens", _thousands("prefill_tokens", "computed")),
    ("wasted", _thousands("prefill_tokens", "wasted")),
    ("hits on the device, %", _hit_share("device_tokens")),
    ("on the host, %", _hit_share("host_tokens")),
    ("to the device on time, GB", _gigabytes("transfers", "to_device_on_time_bytes")),
    ("late", _gigabytes("transfers", "to_device_late_bytes")),
    ("waited for, s", _plain("transfers", "exposed_wait_s")),
    ("KV effective, %", _per_cent("kv", "effective")),
    ("idle, %", _per_cent("kv", "idle")),
    ("dead, %", _per_cent("kv", "dead")),
    ("retractions", _plain("retractions")),
)
"""Why."""


def details(results: Results, cell: str, columns: _Columns) -> str:
    """Systems against columns, for one cell."""
    rows = []
    for system in results.contenders([cell]):
        figures = results.figures(cell, system)
        if figures is not None:
            rows.append([_shown(system), *(show(figures) for _, show in columns)])
    return table(["system", *(title for title, _ in columns)], rows)


def cells_with_variants(results: Results) -> list[str]:
    """Cells on which the whole extension has run, and at least one variant of it."""
    return [
        cell
        for cell in results.cells
        if results.figures(cell, WHOLE) is not None
        and any(results.figures(cell, name) for name in OWN if name in VARIANTS)
    ]


def parts(results: Results, metric: Metric) -> str:
    """This extension's halves and variants as multiples of the whole, on the cells that have any."""
    names = [*OWN, *(name for name in results.systems(results.cells) if name.startswith("reopen"))]
    cells = cells_with_variants(results)
    rows = []
    for name in names:
        entries = []
        for cell in cells:
            value, whole = (results.value(cell, system, metric) for system in (name, WHOLE))
            entries.append(f"{value / whole:.2f}" if value is not None and whole else "–")
        if set(entries) != {"–"}:
            rows.append([f"`{name}`", *entries])
    whole = [number(results.value(cell, WHOLE, metric)) for cell in cells]
    if rows:
        rows.append([f"`{WHOLE}`, {metric.title.rpartition(', ')[2]}", *whole])
    return table(["system", *(f"`{cell}`" for cell in cells)], rows if cells else [])


def has_background(results: Results, cell: str) -> bool:
    return any(
        record.cell == cell and "background_s" in (record.figures or {})
        for record in results.records.values()
    )


SLIGHT = 0.005
"""Part of best-stock's time below which there is nothing to be gained."""


def bounds(results: Results) -> str:
    """What is left to gain: the extension between the best of SGLang's settings and the bounds."""
    rows = []
    for cell in results.cells:
        bound, oracle, stock, ours = (
            results.value(cell, name, MEAN)
            for name in (LOWER_BOUND, ORACLE, BEST_STOCK, "tokencake")
        )
        if bound is None and oracle is None or ours is None or stock is None:
            continue
        closed = "–"
        if oracle is not None and stock - oracle > SLIGHT * stock:
            closed = f"{100 * (stock - ours) / (stock - oracle):.0f} %"
        shown = [number(value) for value in (stock, ours, oracle, bound)]
        rows.append([f"`{cell}`", *shown, closed])
    columns = (BEST_STOCK, "tokencake", ORACLE, LOWER_BOUND, "of the way from best-stock to oracle")
    return table(["workload", *columns], rows)


def failures(sets: dict[str, Results]) -> str:
    rows = [
        [f"`{record.cell}`", f"`{record.system}`", _one_line(record.error or "")]
        for results in sets.values()
        for record in results.failures
    ]
    return table(["workload", "system", "why"], rows)


def _one_line(text: str) -> str:
    line = text.strip().splitlines()[-1] if text.strip() else ""
    return line[:160].replace("|", "\\|")
