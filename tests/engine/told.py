"""A policy that keeps account of what it is told, and a run that it is told about."""

from collections import Counter
from dataclasses import dataclass, field

from tests.replay.scripted import two_turns
from tokencake_sglang.engine.scheduler_hooks import planner_of
from tokencake_sglang.policy import Policy, Request
from tokencake_sglang.replay.driver import Replay
from tokencake_sglang.timewarp.cost import CostModel
from tokencake_sglang.timewarp.engine import TimeWarp
from tokencake_sglang.timewarp.hardware import load_hardware_profile
from tokencake_sglang.timewarp.models import load_model_profile


@dataclass
class Listening(Policy):
    automatic_backup = False
    told: Counter[tuple[str, str]] = field(default_factory=Counter)

    def request_queued(self, request: Request, now_s: float) -> None:
        self.told["queued", request.rid] += 1

    def request_admitted(self, request: Request, now_s: float) -> None:
        self.told["admitted", request.rid] += 1

    def request_finished(self, request: Request, now_s: float) -> None:
        self.told["finished", request.rid] += 1


def run_told(overlap: bool) -> tuple[dict[tuple[str, str], int], int]:
    """What the policy was told how often, and the copies to the host."""
    warp = TimeWarp(
        CostModel(load_model_profile("qwen2.5-14b"), load_hardware_profile("a800")),
        pool_tokens=4096,
        host_tokens=8 * 4096,
        overlap=overlap,
        flags=("--enable-tokencake", "--tokencake-policy", "tests.engine.told:Listening"),
    )
    Replay(two_turns(others=6), warp).run()
    assert warp.transfers is not None
    return dict(planner_of(warp.scheduler).policy.told), len(warp.transfers.backups)
