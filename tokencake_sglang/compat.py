"""What is known about SGLang versions and modes: the one place to look when SGLang moves.

Everything here refuses; nothing degrades. An extension that silently does nothing would be
believed to work.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

SUPPORTED_SGLANG = ("0.5.23",)

_TREE_CORE = "sglang.srt.mem_cache.unified_cache.unified_tree_core:UnifiedTreeCore"

REQUIRED_ATTRIBUTES = (
    # Private seams that engine/ uses beside the hooks of plugin.py.
    "sglang.srt.managers.cache_controller:HiCacheController.start_loading",
    "sglang.srt.mem_cache.allocator.paged:PagedTokenToKVPoolAllocator._release_page_ids",
    "sglang.srt.mem_cache.allocator.token:TokenToKVPoolAllocator.free",
    "sglang.srt.mem_cache.registry:create_unified_radix_cache",
    "sglang.srt.mem_cache.registry:register_radix_cache_backend",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache._apply_cache_actions",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache._apply_eviction_result",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache._evict_device_leaf",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache._execute_and_commit_kv_backup",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.check_prefetch_progress",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.checkpoint_into_tree",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.finish_storage_prefetch_admission",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.flush_pending_backups",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.has_ongoing_prefetch",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.load_back",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.pop_prefetch_loaded_tokens",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.prefetch_from_storage",
    "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.ready_to_load_host_cache",
    f"{_TREE_CORE}._can_reclaim_full_host_duplicate",
    f"{_TREE_CORE}._release_full_host_duplicate",
    f"{_TREE_CORE}._remove_leaf_from_parent",
    f"{_TREE_CORE}._split_node",
    f"{_TREE_CORE}.dec_full_pin",
    f"{_TREE_CORE}.inc_full_pin",
    f"{_TREE_CORE}.node_by_id",
    "sglang.srt.mem_cache.unified_cache.unified_tree_core:UnifiedTreeNode.counter",
    "sglang.srt.managers.schedule_policy:PrefillAdder._get_running_request_total_token_offset",
    "sglang.srt.managers.schedule_policy:PrefillAdder._select_prefill_admission",
    "sglang.srt.managers.tokenizer_control_mixin:_COMMUNICATOR_SPECS",
)


class Unsupported(SystemExit):
    """Ends start-up with one line and status 1."""

    def __init__(self, what: str) -> None:
        super().__init__(f"tokencake: {what}")


def check_version() -> None:
    """Refuses SGLang versions that this release was not tested with.

    Raises:
        Unsupported: naming the version and the one to install.
    """
    from sglang.version import __version__ as version

    if version not in SUPPORTED_SGLANG:
        raise Unsupported(
            f"SGLang {version} is not supported; install sglang=={SUPPORTED_SGLANG[-1]} "
            f"or start without --enable-tokencake"
        )


def check_attributes() -> None:
    """Looks for every private attribute of SGLang that is used here.

    Raises:
        Unsupported: naming the first one that is missing.
    """
    for path in REQUIRED_ATTRIBUTES:
        module_name, _, attributes = path.partition(":")
        try:
            target: Any = importlib.import_module(module_name)
            for name in attributes.split("."):
                target = getattr(target, name)
        except (ImportError, AttributeError):
            raise Unsupported(f"SGLang has no {path.replace(':', '.')}, which is needed") from None


class Mode(NamedTuple):
    """A way to run SGLang that this version does not serve."""

    is_chosen: Callable[[Any], bool]
    name: str
    instead: str = "drop one of the two"


def _rust_server_chosen() -> bool:
    from sglang.srt.environ import envs

    return envs.SGLANG_RUST_SERVER.get()


SERVED_STORAGE_BACKENDS = ("file",)
"""Those that this release was tested with."""

UNSERVED_MODES: tuple[Mode, ...] = (
    Mode(lambda cfg: cfg.disable_radix_cache, "--disable-radix-cache"),
    Mode(lambda cfg: cfg.speculative_algorithm is not None, "--speculative-algorithm"),
    Mode(lambda cfg: cfg.disaggregation_mode != "null", "--disaggregation-mode"),
    Mode(lambda cfg: cfg.tokenizer_worker_num > 1, "--tokenizer-worker-num above 1"),
    Mode(lambda cfg: cfg.detokenizer_worker_num > 1, "--detokenizer-worker-num above 1"),
    Mode(lambda cfg: cfg.pp_size > 1, "--pipeline-parallel-size above 1"),
    Mode(lambda cfg: cfg.use_ray, "--use-ray"),
    Mode(lambda _cfg: _rust_server_chosen(), "SGLANG_RUST_SERVER"),
    Mode(lambda cfg: cfg.smg_grpc_mode or cfg.grpc_mode, "--grpc-mode"),
    Mode(lambda cfg: cfg.enable_lmcache, "--enable-lmcache"),
    Mode(lambda cfg: cfg.enable_flexkv, "--enable-flexkv"),
    Mode(
        lambda cfg: cfg.enable_unified_cache_external_linker,
        "--enable-unified-cache-external-linker",
    ),
    Mode(
        lambda cfg: cfg.hicache_storage_backend not in (None, *SERVED_STORAGE_BACKENDS),
        "--hicache-storage-backend other than file",
        "use --hicache-storage-backend file, or none",
    ),
    Mode(
        lambda cfg: cfg.hicache_host_memory_mode != "cache",
        "--hicache-host-memory-mode buffer_only",
    ),
    Mode(lambda cfg: cfg.hicache_write_policy == "write_back", "--hicache-write-policy write_back"),
    Mode(lambda cfg: cfg.enable_session_radix_cache, "--enable-session-radix-cache"),
    Mode(lambda cfg: cfg.enable_streaming_session, "--enable-streaming-session"),
    Mode(lambda cfg: cfg.enable_pdmux, "--enable-pdmux"),
    Mode(lambda cfg: cfg.enable_dp_attention, "--enable-dp-attention"),
    Mode(lambda cfg: cfg.encoder_only or cfg.language_only, "encoder disaggregation"),
)


def check_modes(cfg: Any) -> None:
    """Args:
        cfg: SGLang's settings, as given or resolved.

    Raises:
        Unsupported: naming the first setting that is not served yet.
    """
    for mode in UNSERVED_MODES:
        if mode.is_chosen(cfg):
            raise Unsupported(
                f"{mode.name} is not supported with --enable-tokencake yet; {mode.instead}"
            )


def check_model(model_config: Any) -> None:
    """Args:
        model_config: SGLang's ``ModelConfig`` of the model to be served.

    Raises:
        Unsupported: naming the kind of model, which is not served yet.
    """
    kind = _unserved_model(model_config)
    if kind is not None:
        raise Unsupported(
            f"{kind} models are not supported yet "
            f"({', '.join(model_config.hf_config.architectures or ['?'])}); "
            "start without --enable-tokencake"
        )


def _unserved_model(model_config: Any) -> str | None:
    from sglang.srt.configs.model_config import AttentionArch
    from sglang.srt.mem_cache.kv_cache_builder import uses_ssm_state

    if uses_ssm_state(model_config):
        return "hybrid (state-space)"
    if model_config.attention_arch == AttentionArch.MLA:
        return "MLA"
    if model_config.attention_arch != AttentionArch.MHA:
        return model_config.attention_arch.name
    if model_config.is_hybrid_swa or model_config.sliding_window_size not in (None, -1):
        return "sliding-window"
    if not model_config.is_generation:
        return "embedding"
    return None
