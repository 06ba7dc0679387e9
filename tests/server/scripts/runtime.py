"""A ``Runtime``, whose parent process loads no plugin. Arguments: the model, a port.

Prints as JSON the status and the server's own account of its settings.
"""

import json
import sys

import httpx
import sglang as sgl

from tokencake_sglang.signals.client import Client

if __name__ == "__main__":
    runtime = sgl.Runtime(
        model_path=sys.argv[1],
        port=int(sys.argv[2]),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32",
        max_total_tokens=1024,
        hicache_ratio=4,
    )
    params = {"max_new_tokens": 4, "custom_params": {"tokencake": {"agent": "coder"}}}
    with httpx.Client(base_url=runtime.url, timeout=60) as http:
        body = {"input_ids": [5, 6, 7], "sampling_params": params}
        http.post("/generate", json=body)
        with Client(runtime.url, strict=True) as client, client.agent("coder").tool_call("search"):
            pass
        http.post("/generate", json=body)
        status = http.get("/tokencake/status").json()
        settings = http.get("/server_info").json()
    parent = runtime.server_args.radix_cache_backend
    runtime.shutdown()
    print(json.dumps({"status": status, "settings": settings, "parent": parent}))
