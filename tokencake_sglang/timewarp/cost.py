"""How long a forward pass and a host copy take."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from tokencake_sglang.timewarp.hardware import HardwareProfile
from tokencake_sglang.timewarp.models import ModelProfile


class Work(NamedTuple):
    """One request's part in a forward: ``new_tokens`` are computed after ``context_tokens``."""

    new_tokens: int
    context_tokens: int


class CostModel:
    """A roofline: the longer of arithmetic and memory traffic, plus a fixed overhead.

    Arithmetic: the linear layers for each new token, attention for each (query, key) pair -
    ``n c + n (n + 1) / 2`` pairs for n new tokens after c - and the head once a request.
    Memory: the weights once, and the keys and values of every context once.

    Args:
        compute_scale: times the profile's arithmetic speed; 0.5 is half as fast. For studies of how
            far a result depends on the profile.
        bandwidth_scale: likewise for the memory.
        link_scale: likewise for both ways of the link to the host.
    """

    def __init__(
        self,
        model: ModelProfile,
        hardware: HardwareProfile,
        *,
        compute_scale: float = 1.0,
        bandwidth_scale: float = 1.0,
        link_scale: float = 1.0,
    ) -> None:
        for name, scale in (
            ("compute_scale", compute_scale),
            ("bandwidth_scale", bandwidth_scale),
            ("link_scale", link_scale),
        ):
            if not 0.0 < scale < math.inf:
                raise ValueError(f"{name}: expected a factor above 0, got {scale}")
        self.model = model
        self.hardware = hardware
        self._flops_per_s = hardware.peak_flops * hardware.compute_efficiency * compute_scale
        self._bytes_per_s = (
            hardware.memory_bytes_per_s * hardware.memory_efficiency * bandwidth_scale
        )
        self.load_bytes_per_s = hardware.host_to_device_bytes_per_s * link_scale
        self._backup_bytes_per_s = hardware.device_to_host_bytes_per_s * link_scale

    def forward_s(self, batch: Sequence[Work]) -> float:
        """Seconds of one forward pass over the batch."""
        return (
            max(
                self.flops(batch) / self._flops_per_s, self.traffic_bytes(batch) / self._bytes_per_s
            )
            + self.hardware.step_overhead_s
        )

    def flops(self, batch: Sequence[Work]) -> float:
        """Floating-point operations of one forward pass over the batch."""
        model = self.model
        new_tokens = sum(work.new_tokens for work in batch)
        pairs = sum(
            work.new_tokens * work.context_tokens + work.new_tokens * (work.new_tokens + 1) / 2
            for work in batch
        )
        return (
            new_tokens * model.layer_flops_per_token
            + pairs * model.attention_flops_per_pair
            + len(batch) * model.head_flops
        )

    def traffic_bytes(self, batch: Sequence[Work]) -> float:
        """Bytes that one forward pass over the batch moves between memory and processor."""
        model = self.model
        new_tokens = sum(work.new_tokens for work in batch)
        kv_tokens = sum(work.new_tokens + work.context_tokens for work in batch)
        return model.weight_bytes_read(new_tokens) + kv_tokens * model.kv_bytes_per_token

    def load_s(self, tokens: int) -> float:
        """Seconds to copy the KV of ``tokens`` from host to device."""
        return self._copy_s(tokens, self.load_bytes_per_s)

    def backup_s(self, tokens: int) -> float:
        """Seconds to copy the KV of ``tokens`` from device to host."""
        return self._copy_s(tokens, self._backup_bytes_per_s)

    def _copy_s(self, tokens: int, bytes_per_s: float) -> float:
        if tokens == 0:
            return 0.0
        return self.hardware.copy_latency_s + tokens * self.model.kv_bytes_per_token / bytes_per_s
