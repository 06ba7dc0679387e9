"""The platform class that `torch_cpu.activate` names. Importing it imports SGLang."""

import logging

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.interface import PlatformCapabilities, PlatformEnum, SRTPlatform

from tokencake_sglang.platforms import torch_cpu

logger = logging.getLogger(__name__)

#: KV cache in tokens, device tier, where the user sizes it in no way. SGLang would take, and touch,
#: most of the machine's memory: right for a GPU, which serves nothing else, but not for a CPU.
DEFAULT_MAX_TOTAL_TOKENS = 16_384

#: What only accelerators can serve, and what serves in its place. (argument, value here)
HICACHE_ARGUMENTS = (
    ("hicache_io_backend", "direct"),
    ("hicache_mem_layout", "layer_first"),
)


class TorchCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """CPU devices, torch-native everything.

    Declared out-of-tree because that makes SGLang's core take its torch-native allocator, rotary
    embedding and norms instead of the kernels of its AMX engine.
    """

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()

    def apply_server_args_defaults(self, server_args) -> None:
        """Fill in, or correct with a log line, what cannot run here. Mutates `server_args`."""
        if server_args.attention_backend in (None, "intel_amx"):
            # SGLang's rule for `--device cpu` has just filled in intel_amx.
            server_args.attention_backend = "torch_native"
        server_args.sampling_backend = "pytorch"
        if server_args.max_total_tokens is None and server_args.mem_fraction_static is None:
            logger.info("--max-total-tokens defaults to %d on CPU", DEFAULT_MAX_TOTAL_TOKENS)
            server_args.max_total_tokens = DEFAULT_MAX_TOTAL_TOKENS
        if not server_args.enable_hierarchical_cache:
            return
        for argument, value in HICACHE_ARGUMENTS:
            asked = getattr(server_args, argument)
            if asked != value:
                flag = "--" + argument.replace("_", "-")
                logger.info("%s %s needs an accelerator, using %s %s", flag, asked, flag, value)
                setattr(server_args, argument, value)

    def get_device(self, device_id: int = 0) -> str:
        # A string, as SRTPlatform declares it: `CpuDeviceMixin` returns a `torch.device`, which
        # SGLang cannot take as the default of `--device`.
        return "cpu"

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def is_pin_memory_available(self, device=None) -> bool:
        return False

    def init_backend(self) -> None:
        """Called by SGLang in each worker process, before any pool is built."""
        torch_cpu.install_shims()
