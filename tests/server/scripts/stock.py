"""Prints, as JSON, what the installed plugin does to a launcher that does not ask for it."""

import json
import os
import sys

from sglang.srt.mem_cache.registry import get_radix_cache_factory
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.server_args import prepare_server_args

if __name__ == "__main__":
    load_plugins()
    server_args = prepare_server_args(sys.argv[1:])
    found = {
        "hooks": sorted(HookRegistry._patched),
        "radix_cache_backend": server_args.radix_cache_backend,
        "enable_hierarchical_cache": server_args.enable_hierarchical_cache,
        "variables": [name for name in os.environ if name.startswith("TOKENCAKE_")],
        "backend_registered": get_radix_cache_factory("tokencake") is not None,
    }
    print(json.dumps(found))
