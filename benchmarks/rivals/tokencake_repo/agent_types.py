"""What is remembered of agent types, and their scores (``AgentHistory`` in ``scheduling.py``)."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

from benchmarks.rivals.tokencake_repo.graph import Metadata
from benchmarks.rivals.tokencake_repo.score import TypeHistory
from tokencake_sglang.policy import Request, View

HISTORY_LIMIT = 4096
UNTAGGED = ""


def agent_type(request: Request) -> str:
    return UNTAGGED if request.agent is None else request.agent.agent_type


class AgentTypes:
    """A history for each type; ``declared`` gives a request's metadata."""

    def __init__(self, declared: Callable[[str], Metadata]) -> None:
        self.declared = declared
        self._history: OrderedDict[str, TypeHistory] = OrderedDict()
        self._admitted_s: dict[str, float] = {}

    def admitted(self, request: Request, application_s: float, now_s: float) -> None:
        """``application_s``: how old the application was when the request came."""
        history, declared = self._of(request), self.declared(request.rid)
        history.deferrals = max(0, history.deferrals - 1)
        history.importance = declared.importance
        if request.rid in self._admitted_s:
            return
        self._admitted_s[request.rid] = now_s
        history.samples += 1
        history.input_tokens += request.prompt_tokens
        history.depth += declared.depth
        history.out_degree += declared.out_degree
        history.in_degree += declared.in_degree
        history.elapsed_s += application_s
        history.remaining += declared.remaining_depth

    def preempted(self, request: Request) -> None:
        self._of(request).preemptions += 1

    def finished(self, request: Request, now_s: float) -> None:
        history = self._of(request)
        history.output_tokens += request.tokens - request.prompt_tokens
        history.completed += 1
        history.duration_s += max(0.0, now_s - self._admitted_s.pop(request.rid, now_s))

    def deferred(self, requests: Mapping[str, int]) -> None:
        """How many requests of each type were asked for and not admitted in a step."""
        for kind, count in requests.items():
            if kind in self._history:
                self._history[kind].deferrals += count

    def scores(self, view: View) -> tuple[dict[str, float], dict[str, float]]:
        """Scores and importance of all types that are remembered, wait or run."""
        importance = {kind: history.importance for kind, history in self._history.items()}
        for request in (*view.queue, *view.running):
            kind = agent_type(request)
            declared = self.declared(request.rid).importance
            importance[kind] = max(importance.get(kind, 0.0), declared)
        waits_s: dict[str, list[float]] = {}
        for request in view.queue:
            waits_s.setdefault(agent_type(request), []).append(view.now_s - request.queued_s)
        scores = {}
        for kind, value in importance.items():
            waited_s = waits_s.get(kind, [])
            average_s = sum(waited_s) / max(1, len(waited_s))
            history = self._history.get(kind, TypeHistory())
            scores[kind] = history.score(value, len(waited_s), average_s)
        return scores, importance

    def _of(self, request: Request) -> TypeHistory:
        kind = agent_type(request)
        history = self._history.setdefault(kind, TypeHistory())
        self._history.move_to_end(kind)
        if len(self._history) > HISTORY_LIMIT:
            self._history.popitem(last=False)
        return history
