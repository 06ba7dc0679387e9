"""Lets SGLang, HiCache included, serve on a machine that has no accelerator.

SGLang's own CPU engine needs an AMX build of `sgl_kernel`; this platform needs only torch. It exists
for tests, demonstrations and development, and stays out of the way wherever an accelerator is.

This module holds the entry point and what has to be changed in SGLang's host pools; the platform
class lies in its own module because SGLang imports it only once it is chosen.
"""

import importlib.util
import os
from collections.abc import Sequence

import torch

PLATFORM_CLASS = "tokencake_sglang.platforms.torch_cpu_platform:TorchCpuPlatform"

#: Host memory in bytes that HiCache leaves to everything else. SGLang's 10 GiB is meant for GPU
#: servers and is more than a laptop or a CI machine has to spare.
HOST_MEMORY_RESERVE_BYTES = 1 << 30


def activate() -> str | None:
    """Entry point of the group `sglang.srt.platforms`.

    Returns the name of the platform class where SGLang would find no device at all, else None.
    """
    if os.getenv("SGLANG_USE_CPU_ENGINE", "0") == "1" or accelerator_present():
        return None
    return PLATFORM_CLASS


def accelerator_present() -> bool:
    """Whether SGLang would serve from something else than the CPU.

    torch answers for CUDA, ROCm, XPU, MPS and registered vendor backends; the rest are the vendors
    that SGLang looks for in ways of their own.
    """
    npu = getattr(torch, "npu", None)
    return (
        torch.accelerator.is_available()
        or torch.cuda.is_available()  # also what vendor builds answer that imitate CUDA
        or (npu is not None and npu.is_available())
        or getattr(torch.version, "musa", None) is not None
        or importlib.util.find_spec("habana_frameworks") is not None
    )


def install_shims() -> bool:
    """Make HiCache's host pools work without CUDA's memory registration and copy kernels.

    Changes module globals of `sglang.srt.mem_cache.pool_host`; may be called any number of times,
    before the first host pool is built. Returns False, and changes nothing, where the platform is
    not active.
    """
    if activate() is None:
        return False
    from sglang.srt.mem_cache.pool_host import base, common, mha

    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = HOST_MEMORY_RESERVE_BYTES
    common.ALLOC_MEMORY_FUNCS["cpu"] = allocate_unregistered
    # SGLang imports this name from sgl_kernel, on CUDA, ROCm and XPU only.
    mha.transfer_kv_direct = transfer_kv_direct
    mha.MHATokenToKVPoolHost.get_dummy_flat_data_page = unpinned_data_page
    return True


def allocate_unregistered(
    dims: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    pin_memory: bool,
    allocator,
    registration_granularity_bytes: int | None = None,
) -> torch.Tensor:
    """Host buffer of shape `dims` from `allocator`, neither pinned nor registered.

    The signature is that of `ALLOC_MEMORY_FUNCS`; with no device to copy to, the last arguments
    have nothing to act on.
    """
    return allocator.allocate(dims, dtype=dtype, device=device)


def unpinned_data_page(pool) -> torch.Tensor:
    """An empty page that a storage backend reads into, flat; SGLang's own is pinned memory.

    Args:
        pool: an `MHATokenToKVPoolHost`, of whose method this takes the place.
    """
    dims = (2, pool.layer_num, pool.page_size, pool.head_num, pool.head_dim)
    return torch.zeros(dims, dtype=pool.dtype).flatten()


def transfer_kv_direct(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy tokens between layer-first pools, as `sgl_kernel.kvcacheio` does on a GPU.

    Used in both directions: host to device one layer at a time, device to host all layers at once.
    Layers are `[slots, heads, head_dim]`; the indices are token slots for every page size, which is
    why `page_size` (tokens) only serves to check them. Mutates `dst_layers`; copies synchronously.
    """
    if len(src_indices) != len(dst_indices) or len(src_indices) % page_size:
        raise ValueError(
            f"indices must be equally many and whole pages of {page_size} tokens, got "
            f"{len(src_indices)} source and {len(dst_indices)} destination slots"
        )
    for source, destination in zip(src_layers, dst_layers, strict=True):
        destination[dst_indices] = source[src_indices]
