"""A cell: one workload on one machine, for every system to serve."""

import msgspec

from benchmarks.matrix.workloads import WorkloadSpec

PAGE_TOKENS = 16


class Cell(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Hashable, and as JSON the same every time.

    ``id`` names it in result files and tables, such as ``code_writer/equal-1.0``. Scales multiply
    what the hardware profile says.
    """

    id: str
    workload: WorkloadSpec
    model: str
    hardware: str
    pool_tokens: int
    host_tokens: int
    overlap: bool = True
    page_tokens: int = PAGE_TOKENS
    chunked_prefill_tokens: int = 8192
    max_running_requests: int = 256
    sample_s: float = 1.0
    """Virtual seconds between looks into the pool."""
    compute_scale: float = 1.0
    bandwidth_scale: float = 1.0
    link_scale: float = 1.0
    critical_apart: bool = False
    """Whether its figures have the first tokens of critical agents and of others apart."""

    @property
    def group(self) -> str:
        """What comes before the slash: cells of a group go into one table."""
        return self.id.partition("/")[0]

    @property
    def variant(self) -> str:
        return self.id.partition("/")[2]

    @property
    def spec(self) -> dict:
        return msgspec.to_builtins(self)


def pool_tokens(memory_bytes: float, weight_bytes: float, kv_bytes_per_token: int) -> int:
    """Slots of a device pool: 85 % of the memory less the weights, in whole pages.

    0.85 is about what SGLang's ``--mem-fraction-static`` comes to on such machines.
    """
    tokens = (0.85 * memory_bytes - weight_bytes) / kv_bytes_per_token
    if tokens < PAGE_TOKENS:
        raise ValueError(f"memory_bytes: {memory_bytes:g} leaves no pool beside the weights")
    return int(tokens) // PAGE_TOKENS * PAGE_TOKENS
