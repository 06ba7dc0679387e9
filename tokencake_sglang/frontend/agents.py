"""Which agent a frontend program runs as."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from tokencake_sglang.signals.agent_handle import AgentHandle

if TYPE_CHECKING:
    from tokencake_sglang.frontend.endpoint import TokencakeEndpoint

_current: ContextVar["FrontendAgent | None"] = ContextVar("tokencake_agent", default=None)


class FrontendAgent(AgentHandle):
    """An agent whose requests are programs of the frontend language.

    Its branches (``s.fork``) are agents of the same application and type, named
    ``<agent>/<index>``; the index counts over all forks of one such object.
    """

    def __init__(self, endpoint: "TokencakeEndpoint", name: str, **options: Any) -> None:
        super().__init__(endpoint.signals, name, **options)
        self._endpoint = endpoint
        self._options = options
        self._branches = itertools.count()
        self._lock = threading.Lock()
        self.has_requested = False
        """Whether the server can know of it."""

    def branch(self) -> "FrontendAgent":
        """The next branch: an agent of its own, since it stops at tool calls of its own."""
        with self._lock:
            index = next(self._branches)
        options = {**self._options, "application": self.application}
        return FrontendAgent(self._endpoint, f"{self.name}/{index}", **options)


def current_agent() -> FrontendAgent | None:
    """The agent as which programs started here and now run."""
    return _current.get()


@contextmanager
def agent(
    endpoint: "TokencakeEndpoint",
    name: str,
    *,
    application: str | None = None,
    agent_type: str = "default",
    node: str | None = None,
    critical: bool = False,
    tenant: str | None = None,
) -> Iterator[FrontendAgent]:
    """Programs started inside the block run as this agent; gives its handle.

    The agent is not finished at the end of the block: it may have more turns. Call ``finish()``
    on the handle when it has none. Threads started inside the block do not inherit it (Python's
    rule for context variables), so ``run_batch`` runs untagged: use ``run_as`` for each program.
    """
    handle = FrontendAgent(
        endpoint,
        name,
        application=application,
        agent_type=agent_type,
        node=node,
        critical=critical,
        tenant=tenant,
    )
    with running_as(handle):
        yield handle


@contextmanager
def running_as(handle: FrontendAgent) -> Iterator[FrontendAgent]:
    """As :func:`agent`, for a handle that exists."""
    token = _current.set(handle)
    try:
        yield handle
    finally:
        _current.reset(token)


def run_as(
    endpoint: "TokencakeEndpoint", name: str, program: Any, *args: Any, **kwargs: Any
) -> Any:
    """``program.run(*args, **kwargs)`` as the agent ``name``; returns the program's state.

    ``application``, ``agent_type``, ``node``, ``critical`` and ``tenant`` are the agent's; all
    other keyword arguments are the program's.
    """
    fields = ("application", "agent_type", "node", "critical", "tenant")
    options = {field: kwargs.pop(field) for field in fields if field in kwargs}
    with agent(endpoint, name, **options):
        return program.run(*args, backend=endpoint, **kwargs)
