"""Whether the TokenCake authors' four systems come out in their order in virtual time.

    python -m benchmarks.calibration.ordering --rates 1.0

Native, its scheduling alone, its offload alone and both: code_writer's 24 applications on the
server of ``setup``, one run of each for each rate, a few minutes of processor time a run; the
result is ``benchmarks/results/published_ordering.json``. Nothing is fitted here: the constants are
those of ``benchmarks.calibration.published``, which saw the native runs only.

Source of the published wall times: README of pku-lemonade/TokenCake, 24 applications, 648 calls
with 155,136 output tokens, Qwen2.5-14B on an A800 with 48,800 tokens of KV and 100 GiB on the host.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.calibration.setup import PUBLISHED_SETUP

RESULT = Path(__file__).parents[1] / "results" / "published_ordering.json"

SYSTEMS = {
    "native": "stock",
    "scheduling": "tokencake-repo-scheduling",
    "offload": "tokencake-repo-offload",
    "both": "tokencake-repo",
}
"""Their name → the matrix's."""

PUBLISHED_WALL_S = {
    0.05: {"native": 875.74, "scheduling": 806.39, "offload": 677.62, "both": 676.86},
    0.1: {"native": 940.76, "scheduling": 825.72, "offload": 672.67, "both": 671.28},
    0.2: {"native": 938.79, "scheduling": 815.69, "offload": 681.66, "both": 640.45},
    0.5: {"native": 938.99, "scheduling": 830.47, "offload": 713.16, "both": 648.05},
    1.0: {"native": 960.44, "scheduling": 837.78, "offload": 691.01, "both": 631.77},
}
"""By applications a second."""


def run(rate: float, system: str) -> dict[str, Any]:
    """One run; a process can do this once."""
    from benchmarks.matrix.execute import execute
    from benchmarks.matrix.sets import dag

    return execute(dag(PUBLISHED_SETUP.application, rate), system).figures


def order(wall_s: dict[str, float]) -> list[str]:
    """The slowest first."""
    return sorted(wall_s, key=lambda name: -wall_s[name])


def compare(rate: float, figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One rate of the result: their seconds and these, and where these come from.

    ``to_native`` are shares of the native run's wall time. Prompt tokens are either computed or
    found, on the device or on the host; recomputation after a retraction is in ``computed``.
    """
    published = PUBLISHED_WALL_S[rate]
    measured = {name: figures[name]["makespan_s"] for name in figures}
    return {
        "rate": rate,
        "published_order": order(published),
        "measured_order": order(measured),
        "same_order": order(published) == order(measured),
        "systems": {
            name: {
                "published_wall_s": published[name],
                "measured_wall_s": round(measured[name], 2),
                "published_to_native": round(published[name] / published["native"], 3),
                "measured_to_native": round(measured[name] / measured["native"], 3),
                "application_mean_s": round(found["end_to_end_s"]["mean"], 2),
                "application_p95_s": round(found["end_to_end_s"]["p95"], 2),
                "computed_tokens": found["prefill_tokens"]["computed"],
                "device_hit_tokens": found["hits"]["device_tokens"],
                "host_hit_tokens": found["hits"]["host_tokens"],
                "to_device_gb": round(found["transfers"]["to_device_bytes"] / 1e9, 1),
                "to_host_gb": round(found["transfers"]["to_host_bytes"] / 1e9, 1),
                "steps": found["steps"],
                "retractions": found["retractions"],
                "decisions": found["decisions"],
            }
            for name, found in figures.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    lines = []
    for row in result["rates"]:
        verdict = "the published order" if row["same_order"] else "another order"
        lines.append(f"{row['rate']} applications/s: {verdict}")
        for name, found in row["systems"].items():
            lines.append(
                f"  {name:<10} published {found['published_wall_s']:>7.1f} s "
                f"({found['published_to_native']:.3f})  here {found['measured_wall_s']:>7.1f} s "
                f"({found['measured_to_native']:.3f})  computed {found['computed_tokens']:>9,}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rates", type=float, nargs="+", default=list(PUBLISHED_SETUP.rates))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, default=RESULT, metavar="FILE")
    arguments = parser.parse_args()
    from tokencake_sglang.timewarp.forks import map_in_forks

    cells = [(rate, system) for rate in arguments.rates for system in SYSTEMS.values()]
    found = dict(zip(cells, map_in_forks(run, cells, processes=arguments.jobs), strict=True))
    rates = [
        compare(rate, {name: found[rate, system] for name, system in SYSTEMS.items()})
        for rate in arguments.rates
    ]
    result = {
        "setup": PUBLISHED_SETUP.as_dict(),
        "versions": {name: version(name) for name in ("sglang", "tokencake-sglang")},
        "rates": rates,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
