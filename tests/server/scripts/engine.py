"""An offline engine with the extension from the environment. Argument: the model.

Prints as JSON what the front door and the ranks know after one agent's turn and call.
"""

import asyncio
import json
import os
import sys

import sglang as sgl

from tokencake_sglang.signals.client import Client

if __name__ == "__main__":
    engine = sgl.Engine(
        model_path=sys.argv[1],
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32",
        max_total_tokens=1024,
        hicache_ratio=4,
    )
    params = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}
    tagged = {**params, "custom_params": {"tokencake": {"agent": "coder", "application": "run"}}}
    answers = [
        engine.generate(input_ids=[5, 6, 7], sampling_params=given)
        for given in (params, tagged, tagged)
    ]
    extension = engine.tokenizer_manager.tokencake

    async def call() -> None:
        def signals() -> None:
            with Client(os.environ["TOKENCAKE_ZMQ_ENDPOINT"], strict=True) as client:
                client.call_start("coder", "1", "search", application="run", predicted_s=30)

        await asyncio.to_thread(signals)

    engine.loop.run_until_complete(call())
    status = engine.loop.run_until_complete(extension.status())
    engine.shutdown()
    print(json.dumps({"outputs": [answer["output_ids"] for answer in answers], "status": status}))
