"""Stream executors that know their agent.

SGLang tells a backend neither which program a stream executor runs nor which one it was forked
from, so the executor class itself is replaced, once, by a subclass that remembers. Executors of
other backends are not affected.
"""

from typing import Any

from sglang.lang import interpreter
from sglang.lang.interpreter import StreamExecutor

from tokencake_sglang.frontend.agents import FrontendAgent, current_agent


class AgentExecutor(StreamExecutor):
    """``agent``: as which it runs; that of its creation, for a fork the next branch of it.

    Set when the executor is made, in the thread of the program: with ``stream=True`` the program
    itself goes on in another thread, that does not have the context variable.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agent: FrontendAgent | None = current_agent()
        self.is_branch = False
        super().__init__(*args, **kwargs)

    def fork(self, *args: Any, **kwargs: Any) -> list[StreamExecutor]:
        executors = super().fork(*args, **kwargs)
        for executor in executors:
            executor.agent = self.agent.branch() if self.agent is not None else None
            executor.is_branch = True
        return executors


def install() -> None:
    """Makes SGLang's interpreter use :class:`AgentExecutor`. Does nothing the second time."""
    if not issubclass(interpreter.StreamExecutor, AgentExecutor):
        interpreter.StreamExecutor = AgentExecutor


def agent_of(executor: StreamExecutor) -> FrontendAgent | None:
    """The agent of an executor; None where it runs as nobody."""
    return getattr(executor, "agent", None)
