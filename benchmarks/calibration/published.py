"""Reruns the TokenCake authors' native runs in virtual time and compares with what they measured.

    python -m benchmarks.calibration.published

Five runs with one set of constants, about two minutes; the result is
``benchmarks/results/calibration_published.json``. Their native engine is vLLM with prefix caching
and without a host tier; the counterpart is SGLang without HiCache, first come, first served.

Source of the figures: ``tools/tokencake_experiments/reports/components-final-01/measurements.csv``
of pku-lemonade/TokenCake (Apache-2.0) at commit 48c8488f, rows of mode ``base``. Wall time is their
client's, from its start to its exit; an application's time is from its start to its end; the first
prefill is prompt tokens that were computed rather than found, without recomputation after a
preemption; the first token is the mean over the 648 calls, the queue included. At 0.05 and 0.1
applications a second the figures are medians of three runs, whose wall times spread by 1.6 and
2.6 %.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.calibration.setup import PUBLISHED_SETUP, ServerSetup

RESULT = Path(__file__).parents[1] / "results" / "calibration_published.json"
TOLERANCE = 0.07
"""Relative; of the published figures."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run: seconds, and tokens."""

    wall_s: float
    application_mean_s: float
    application_p50_s: float
    application_p95_s: float
    first_token_mean_s: float
    first_prefill_tokens: float


PUBLISHED = {
    0.05: Figures(875.738, 326.357, 383.927, 455.964, 12.753, 2_373_898),
    0.1: Figures(940.764, 559.024, 647.859, 725.333, 31.760, 2_917_203),
    0.2: Figures(938.793, 661.918, 743.688, 821.644, 41.647, 2_996_432),
    0.5: Figures(938.990, 776.264, 817.458, 883.839, 55.111, 3_073_050),
    1.0: Figures(960.436, 864.147, 884.559, 929.119, 65.022, 3_282_597),
}
"""By applications a second."""

PUBLISHED_PROMPT_TOKENS = 5_876_868
"""Of the 648 calls; generated texts vary, so it varies by a thousandth between their runs."""


def run(setup: ServerSetup, rate: float) -> dict[str, Any]:
    """One run; a process can do this once, for SGLang publishes its settings in it."""
    from benchmarks.workloads import tokencake_dags
    from tokencake_sglang.replay.arrivals import equal_spacing, replicate
    from tokencake_sglang.replay.driver import Replay
    from tokencake_sglang.timewarp.engine import TimeWarp
    from tokencake_sglang.timewarp.hardware import load_hardware_profile
    from tokencake_sglang.timewarp.models import load_model_profile

    workload = replicate(tokencake_dags.load(setup.application), setup.applications)
    cost = measured_cost_model()(
        load_model_profile(setup.model), load_hardware_profile(setup.hardware)
    )
    replay = Replay(equal_spacing(workload, rate), TimeWarp(cost, **setup.server))
    replay.run()
    loop, requests = replay.loop, list(replay.warp.requests.values())
    times_s = [loop.ended_s[name] - loop.started_s[name] for name in loop.ended_s]
    figures = Figures(
        wall_s=max(loop.ended_s.values()),
        application_mean_s=statistics.fmean(times_s),
        application_p50_s=quantile(times_s, 0.5),
        application_p95_s=quantile(times_s, 0.95),
        first_token_mean_s=statistics.fmean(
            r.first_token_s - r.queued_s for r in requests if r.first_token_s is not None
        ),
        first_prefill_tokens=float(sum(len(r.prompt) - r.device_hit_tokens for r in requests)),
    )
    totals = replay.warp.totals
    return {
        "figures": asdict(figures),
        "parts": {
            **cost.parts(),
            "prompt_tokens": sum(len(r.prompt) for r in requests),
            "prefill_tokens": totals.prefill_tokens,
            "output_tokens": totals.output_tokens,
            "retractions": totals.retractions,
        },
    }


def measured_cost_model() -> Any:
    """A CostModel that sums up where the seconds go."""
    from collections.abc import Sequence

    from tokencake_sglang.timewarp.cost import CostModel, Work

    class MeasuredCostModel(CostModel):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.prefill_s = self.decode_s = 0.0
            self.prefill_steps = self.decode_steps = self.decode_requests = 0

        def forward_s(self, batch: Sequence[Work]) -> float:
            seconds = super().forward_s(batch)
            if all(work.new_tokens == 1 for work in batch):
                self.decode_s += seconds
                self.decode_steps += 1
                self.decode_requests += len(batch)
            else:
                self.prefill_s += seconds
                self.prefill_steps += 1
            return seconds

        def parts(self) -> dict[str, float]:
            return {
                "prefill_s": self.prefill_s,
                "prefill_steps": self.prefill_steps,
                "decode_s": self.decode_s,
                "decode_steps": self.decode_steps,
                "requests_per_decode_step": self.decode_requests / self.decode_steps,
            }

    return MeasuredCostModel


def quantile(values: list[float], q: float) -> float:
    """With linear interpolation, as the authors' analysis has it."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def compare(setup: ServerSetup, runs: dict[float, dict[str, Any]]) -> dict[str, Any]:
    """What the result file holds."""
    from tokencake_sglang.timewarp.hardware import load_hardware_profile

    return {
        "setup": setup.as_dict(),
        "hardware": asdict(load_hardware_profile(setup.hardware)),
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("sglang", "tokencake-sglang")},
        },
        "tolerance": TOLERANCE,
        "published_prompt_tokens": PUBLISHED_PROMPT_TOKENS,
        "runs": [
            {
                "rate": rate,
                "published": asdict(PUBLISHED[rate]),
                "measured": {name: round(value, 3) for name, value in found["figures"].items()},
                "ratio": {
                    name: round(found["figures"][name] / value, 4)
                    for name, value in asdict(PUBLISHED[rate]).items()
                },
                "parts": {name: round(value, 3) for name, value in found["parts"].items()},
            }
            for rate, found in runs.items()
        ],
    }


def table(result: dict[str, Any]) -> str:
    """One line a rate: measured and, in brackets, by how much it is off."""
    names = list(result["runs"][0]["ratio"])
    lines = ["rate   " + " ".join(f"{name:>23}" for name in names)]
    for row in result["runs"]:
        cells = [
            f"{row['measured'][name]:>14,.1f} ({row['ratio'][name] - 1:+.1%})" for name in names
        ]
        lines.append(f"{row['rate']:<6} " + " ".join(f"{cell:>23}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, metavar="FILE")
    arguments = parser.parse_args()
    from tokencake_sglang.timewarp.forks import run_in_fork

    setup = PUBLISHED_SETUP
    runs = {rate: run_in_fork(run, setup, rate) for rate in setup.rates}
    result = compare(setup, runs)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
