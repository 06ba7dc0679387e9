"""TokenCake for SGLang: agent-aware KV cache scheduling as a plugin."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokencake_sglang.frontend.endpoint import TokencakeEndpoint, agent, run_as, tool_call
    from tokencake_sglang.signals.client import AsyncClient, Client
    from tokencake_sglang.signals.transports import SignalError

__version__ = "0.1.0"

# Imported when first used: the package is imported by every process of the server and by clients
# that have no sglang.
_EXPORTS = {
    "AsyncClient": "tokencake_sglang.signals.client",
    "Client": "tokencake_sglang.signals.client",
    "SignalError": "tokencake_sglang.signals.transports",
    "TokencakeEndpoint": "tokencake_sglang.frontend.endpoint",
    "agent": "tokencake_sglang.frontend.endpoint",
    "run_as": "tokencake_sglang.frontend.endpoint",
    "tool_call": "tokencake_sglang.frontend.endpoint",
}

__all__ = [
    "AsyncClient",
    "Client",
    "SignalError",
    "TokencakeEndpoint",
    "__version__",
    "agent",
    "run_as",
    "tool_call",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value
