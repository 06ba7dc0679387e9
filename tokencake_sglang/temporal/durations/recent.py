"""The median of a tool's last calls: a number where a distribution is not asked for."""

from collections import OrderedDict, deque
from statistics import median

HISTORY_PER_TOOL = 32
MAX_TOOLS = 4096


class RecentMedians:
    """Bounded; the tool longest unseen is forgotten when there are many."""

    def __init__(self) -> None:
        self.by_tool: OrderedDict[str | None, deque[float]] = OrderedDict()

    def get(self, tool: str | None) -> float | None:
        history = self.by_tool.get(tool)
        return median(history) if history else None

    def observe(self, tool: str | None, duration_s: float) -> None:
        history = self.by_tool.setdefault(tool, deque(maxlen=HISTORY_PER_TOOL))
        history.append(duration_s)
        self.by_tool.move_to_end(tool)
        while len(self.by_tool) > MAX_TOOLS:
            self.by_tool.popitem(last=False)
