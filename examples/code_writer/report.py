"""The figures side by side, and the verdict computed from them."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

Figures = Mapping[str, Any]

NOISE = 0.03
"""Relative differences of times below this are called equal: runs repeat to a few per cent."""

SPEED_RATIO = 1.2
"""Runs further apart than this have to be repeated before they mean anything."""

BUSY_CPUS = 0.3
"""Above this, what other programs took of the processors is too much to compare times."""

_SECONDS = (
    ("mean end-to-end of an application", "application_s", "mean"),
    ("slowest application", "application_s", "max"),
    ("first token of a returning turn, mean", "returning_ttft_s", "mean"),
    ("first token of a returning turn, P50", "returning_ttft_s", "p50"),
    ("first token of a returning turn, max", "returning_ttft_s", "max"),
    ("first token of a first turn, mean", "first_ttft_s", "mean"),
)
_TOKENS = (
    ("prompt tokens", "prompt_tokens"),
    ("  prefilled", "prefilled_tokens"),
    ("  of these recomputed", "recomputed_tokens"),
    ("  found on the device", "device_hit_tokens"),
    ("  found on the host", "host_hit_tokens"),
)
_EXTENSION = (
    ("tokens offloaded", "offloaded_tokens"),
    ("tokens uploaded", "uploaded_tokens"),
    ("returns: KV uploaded in time", "returns_uploaded_in_time"),
    ("returns: KV still on the device", "returns_still_resident"),
    ("returns: upload late", "returns_upload_late"),
    ("returns: not uploaded", "returns_not_uploaded"),
    ("returns: KV lost", "returns_lost"),
)
VERDICT = (
    ("application end-to-end, mean", "application_s", "mean"),
    ("application end-to-end, slowest", "application_s", "max"),
    ("first token of returning turns, mean", "returning_ttft_s", "mean"),
    ("first token of returning turns, max", "returning_ttft_s", "max"),
    ("tokens recomputed", "recomputed_tokens", None),
)


def better_stock(stock: Mapping[str, Figures]) -> str:
    """The stock variant with the smaller mean end-to-end time."""
    return min(stock, key=lambda label: stock[label]["application_s"]["mean"])


def side_by_side(stock: Mapping[str, Figures], extension: Mapping[str, Figures]) -> Table:
    """One column a run, stock first; the last one compares the extension to the better stock."""
    best = stock[better_stock(stock)]
    ((_, ours),) = extension.items()
    every = [*stock.values(), ours]
    table = Table(title="code_writer: the same program, the same outputs")
    table.add_column("")
    for label in stock:
        table.add_column(label + (" (better)" if stock[label] is best else ""), justify="right")
    for label in extension:
        table.add_column(label, justify="right")
    table.add_column("against better stock", justify="right")

    for index in range(len(ours["application_s"]["each"])):
        times = [figures["application_s"]["each"][index] for figures in every]
        table.add_row(
            f"application {index}, end to end",
            *map(_seconds, times),
            _change(best["application_s"]["each"][index], times[-1]),
        )
    for name, group, key in _SECONDS:
        times = [figures[group][key] for figures in every]
        table.add_row(name, *map(_seconds, times), _change(best[group][key], times[-1]))
    table.add_section()
    for name, key in _TOKENS:
        numbers = [figures[key] for figures in every]
        table.add_row(name, *(f"{n:,}" for n in numbers), _change(best[key], numbers[-1]))
    for tier in ("device", "host"):
        rates = [f"{figures[f'{tier}_hit_rate']:.0%}" for figures in every]
        table.add_row(f"hit rate, {tier} (of computed before)", *rates, "")
    for name, key in (("processor time of the server", "server_cpu_s"),):
        times = [figures[key] for figures in every]
        table.add_row(name, *map(_seconds, times), _change(best[key], times[-1]))
    table.add_row(
        "processors busy with other programs", *(f"{f['others_cpus']:.1f}" for f in every), ""
    )
    table.add_section()
    for name, key in _EXTENSION:
        table.add_row(name, *("–" for _ in stock), f"{ours['extension'][key]:,}", "")
    return table


def verdict(stock: Mapping[str, Figures], ours: Figures) -> list[str]:
    """A line each for what the extension does better, equally well and worse than better stock."""
    label = better_stock(stock)
    outcomes: dict[str, list[str]] = {"better": [], "equal": [], "worse": []}
    for name, group, key in VERDICT:
        before, after = stock[label][group], ours[group]
        if key is not None:
            before, after = before[key], after[key]
        outcomes[_outcome(before, after)].append(f"{name} {_change(before, after)}")
    return [
        f"TokenCake against {label}, {outcome}: {'; '.join(names) or 'nothing'}"
        for outcome, names in outcomes.items()
    ]


def cautions(measured: Mapping[str, Figures]) -> list[str]:
    """Why the times of these runs should not be compared; empty when they can be."""
    found = [
        f"Other programs kept {figures['others_cpus']:.1f} processors busy during {label}: "
        "times cannot be compared, repeat on a quiet machine. Tokens and outputs can."
        for label, figures in measured.items()
        if figures["others_cpus"] > BUSY_CPUS
    ]
    wall_s = {label: figures["makespan_s"] for label, figures in measured.items()}
    slow, fast = max(wall_s, key=wall_s.__getitem__), min(wall_s, key=wall_s.__getitem__)
    if wall_s[slow] > SPEED_RATIO * wall_s[fast]:
        found.append(
            f"{slow} took {wall_s[slow]:.0f} s and {fast} {wall_s[fast]:.0f} s for the same outputs. "
            "On shared machines one variant alone varies as much from run to run: repeat it before "
            "you believe it. Tokens and outputs can be compared."
        )
    return found


def _outcome(before: float, after: float) -> str:
    if abs(after - before) <= NOISE * max(before, after):
        return "equal"
    return "better" if after < before else "worse"


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _change(before: float, after: float) -> str:
    if before == 0:
        return "0 %" if after == 0 else "new"
    return f"{100.0 * (after - before) / before:+.0f} %"
