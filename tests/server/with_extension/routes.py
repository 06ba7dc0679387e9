"""The routes by which agents send requests, each with its smallest request."""

from typing import Any, NamedTuple

from examples.smollm2 import ensure_model


class Route(NamedTuple):
    path: str
    body: dict[str, Any]
    takes_custom_params: bool

    def with_custom_params(self, custom_params: dict[str, Any]) -> dict[str, Any]:
        if "sampling_params" in self.body:
            params = {**self.body["sampling_params"], "custom_params": custom_params}
            return {**self.body, "sampling_params": params}
        return {**self.body, "custom_params": custom_params}


_MODEL = str(ensure_model())
_MESSAGES = [{"role": "user", "content": "Say hello."}]

ROUTES = (
    Route("/generate", {"text": "Hello", "sampling_params": {"max_new_tokens": 2}}, True),
    Route("/v1/chat/completions", {"model": _MODEL, "messages": _MESSAGES, "max_tokens": 2}, True),
    Route("/v1/completions", {"model": _MODEL, "prompt": "Hello", "max_tokens": 2}, True),
    Route("/v1/responses", {"model": _MODEL, "input": "Hello", "max_output_tokens": 2}, False),
    Route("/v1/messages", {"model": _MODEL, "messages": _MESSAGES, "max_tokens": 2}, False),
)
ROUTE_IDS = [route.path for route in ROUTES]
