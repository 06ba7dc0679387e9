"""When the CPU platform is chosen, and what it changes in SGLang's host pools."""

from types import SimpleNamespace

import pytest
import torch

from tokencake_sglang.platforms import torch_cpu

HEADS, HEAD_DIM, LAYERS = 2, 8, 3


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch, "npu", raising=False)
    monkeypatch.setattr(torch.version, "musa", None, raising=False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)


@pytest.fixture
def pool_host(request):
    """SGLang's host-pool modules in the state they were imported in; restored afterwards."""
    # Imported before the accelerator is hidden: SGLang decides on import what the machine has.
    from sglang.srt.mem_cache.pool_host import base, common, mha

    request.getfixturevalue("no_accelerator")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "HICACHE_HOST_MEMORY_RESERVE_BYTES", 10 << 30)
        patch.setattr(common, "ALLOC_MEMORY_FUNCS", common.ALLOC_MEMORY_FUNCS.copy())
        common.ALLOC_MEMORY_FUNCS.pop("cpu", None)
        patch.setattr(mha, "ALLOC_MEMORY_FUNCS", common.ALLOC_MEMORY_FUNCS)
        patch.setattr(mha, "transfer_kv_direct", None, raising=False)
        yield SimpleNamespace(base=base, common=common, mha=mha)


def test_it_is_chosen_where_there_is_no_accelerator(no_accelerator):
    assert torch_cpu.activate() == torch_cpu.PLATFORM_CLASS


@pytest.mark.parametrize("module", [torch.accelerator, torch.cuda], ids=["accelerator", "cuda"])
def test_it_is_not_chosen_beside_an_accelerator(no_accelerator, monkeypatch, module):
    monkeypatch.setattr(module, "is_available", lambda: True)
    assert torch_cpu.activate() is None


def test_it_is_not_chosen_beside_an_npu(no_accelerator, monkeypatch):
    npu = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    assert torch_cpu.activate() is None


def test_it_is_not_chosen_with_a_musa_build_of_torch(no_accelerator, monkeypatch):
    monkeypatch.setattr(torch.version, "musa", "4.3", raising=False)
    assert torch_cpu.activate() is None


def test_it_leaves_sglangs_own_cpu_engine_alone(no_accelerator, monkeypatch):
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert torch_cpu.activate() is None


def test_the_named_class_is_a_platform_that_sglang_can_load(no_accelerator):
    from sglang.srt.platforms import _load_platform_class

    chosen = _load_platform_class(torch_cpu.activate())()
    assert chosen.is_out_of_tree() and chosen.get_device() == "cpu"


def test_arguments_that_need_an_accelerator_are_replaced():
    asked = SimpleNamespace(
        attention_backend="intel_amx",
        sampling_backend=None,
        max_total_tokens=None,
        mem_fraction_static=None,
        enable_hierarchical_cache=True,
        hicache_io_backend="kernel",
        hicache_mem_layout="page_first",
    )
    platform().apply_server_args_defaults(asked)
    assert (asked.attention_backend, asked.sampling_backend) == ("torch_native", "pytorch")
    assert (asked.hicache_io_backend, asked.hicache_mem_layout) == ("direct", "layer_first")
    assert asked.max_total_tokens == 16_384


@pytest.mark.parametrize("sized_by", [{"max_total_tokens": 512}, {"mem_fraction_static": 0.1}])
def test_a_size_of_the_kv_cache_that_the_user_chose_is_kept(sized_by):
    unsized = {"max_total_tokens": None, "mem_fraction_static": None}
    asked = SimpleNamespace(
        attention_backend="torch_native", enable_hierarchical_cache=False, **(unsized | sized_by)
    )
    platform().apply_server_args_defaults(asked)
    assert {name: getattr(asked, name) for name in unsized} == unsized | sized_by


def test_shims_change_nothing_beside_an_accelerator(pool_host, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert torch_cpu.install_shims() is False
    assert pool_host.mha.transfer_kv_direct is None
    assert "cpu" not in pool_host.common.ALLOC_MEMORY_FUNCS
    assert pool_host.base.HICACHE_HOST_MEMORY_RESERVE_BYTES == 10 << 30


def test_shims_can_be_installed_twice(pool_host):
    assert torch_cpu.install_shims() and torch_cpu.install_shims()
    assert pool_host.mha.transfer_kv_direct is torch_cpu.transfer_kv_direct
    assert pool_host.base.HICACHE_HOST_MEMORY_RESERVE_BYTES == 1 << 30


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backup_and_a_load_through_sglangs_host_pool_copy_exactly(pool_host, page_size, dtype):
    torch_cpu.install_shims()
    device = device_pool(slots=8 * page_size, page_size=page_size, dtype=dtype)
    host = host_pool(pool_host.mha, device, page_size)
    device_slots = slots_of_pages([5, 2, 7], page_size)
    other_slots = slots_of_pages([1, 6, 3], page_size)
    host_slots = host.alloc(len(device_slots)).flip(0).contiguous()
    before = [buffer.clone() for buffer in (*device.k_buffer, *device.v_buffer)]

    host.backup_from_device_all_layer(device, host_slots, device_slots, "direct")
    for layer in range(LAYERS):
        host.load_to_device_per_layer(device, host_slots, other_slots, layer, "direct")

    for old, new in zip(before, (*device.k_buffer, *device.v_buffer), strict=True):
        expected = old.clone()
        expected[other_slots] = old[device_slots]
        assert torch.equal(new, expected)


def test_transfers_of_broken_pages_are_refused():
    layer = [torch.zeros(64, HEADS, HEAD_DIM)]
    with pytest.raises(ValueError, match="whole pages of 16 tokens, got 8 source"):
        torch_cpu.transfer_kv_direct(layer, layer, torch.arange(8), torch.arange(8), page_size=16)


def platform():
    from tokencake_sglang.platforms.torch_cpu_platform import TorchCpuPlatform

    return TorchCpuPlatform()


def device_pool(slots: int, page_size: int, dtype: torch.dtype):
    """SGLang's device pool on the CPU, every element different."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    pool = MHATokenToKVPool(
        size=slots,
        page_size=page_size,
        dtype=dtype,
        head_num=HEADS,
        head_dim=HEAD_DIM,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
    )
    for buffer in (*pool.k_buffer, *pool.v_buffer):
        buffer.copy_(torch.rand(buffer.shape))
    return pool


def host_pool(mha, device, page_size: int):
    """SGLang's host pool for `device`, twice its size."""
    return mha.MHATokenToKVPoolHost(
        device._mha_buffer_info(),
        host_to_device_ratio=2,
        host_size=0,
        page_size=page_size,
        layout="layer_first",
        device_capacity_tokens=device.size,
        start_layer=0,
        end_layer=LAYERS,
    )


def slots_of_pages(pages: list[int], page_size: int) -> torch.Tensor:
    return torch.cat([torch.arange(p * page_size, (p + 1) * page_size) for p in pages])
