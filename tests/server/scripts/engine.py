"""An offline engine with the extension from the environment. Argument: the model.

Prints as JSON what the front door and the ranks know after one agent's turns and calls.
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
    extension = engine.tokenizer_manager.tokencake

    def answer(given: dict) -> list[int]:
        return engine.generate(input_ids=[5, 6, 7], sampling_params=given)["output_ids"]

    def send(signal: str, **fields: str) -> None:
        """Over ZeroMQ from another thread; the engine listens only while its loop runs."""

        def call() -> None:
            with Client(os.environ["TOKENCAKE_ZMQ_ENDPOINT"], strict=True) as client:
                getattr(client, signal)("coder", application="run", **fields)

        engine.loop.run_until_complete(asyncio.to_thread(call))

    outputs = [answer(params), answer(tagged)]
    send("call_start", call_id="1", tool="search")
    send("call_finish", call_id="1")
    outputs.append(answer(tagged))
    send("call_start", call_id="2", tool="search")
    status = engine.loop.run_until_complete(extension.status())
    engine.shutdown()
    print(json.dumps({"outputs": outputs, "status": status}))
