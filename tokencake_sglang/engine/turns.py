"""Agents' open turns, and how long their applications still take from there on."""

from collections.abc import Callable

from tokencake_sglang.agents.events import ApplicationStart, Graph
from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent
from tokencake_sglang.spatial.graph import DeclaredPaths
from tokencake_sglang.spatial.paths import Place, RemainingPaths


class Turns:
    """Watches turns, and says of each what its application declared or others of its kind took.

    Args:
        agents_in: the agents of an application that the rank knows.
        declared: what an application declared of itself.
        knows_paths: whether anything is taken to be known of remaining paths.
    """

    def __init__(
        self,
        agents_in: Callable[[str], list[Agent]],
        declared: Callable[[str], ApplicationStart | None],
        *,
        knows_paths: bool = True,
    ) -> None:
        self.agents_in = agents_in
        self.declared = declared
        self.knows_paths = knows_paths
        self.paths = RemainingPaths()
        self._open: dict[AgentKey, tuple[Place, float]] = {}  # with when they began
        self._graphs: dict[str, tuple[Graph, DeclaredPaths]] = {}  # of those in the queue

    def began(self, agent: Agent, now_s: float) -> None:
        """Remembers the agent's open turn, where there is more than one agent: a single one has
        nobody to go before, and there may be very many of those. Of an agent's several requests at
        once the first counts."""
        application = agent.key.application
        agents = self.agents_in(application)
        if len(agents) == 1:
            return
        # With the second agent that of the first begins to count; of more, all others' do already.
        for other in agents if len(agents) == 2 else (agent,):
            if other.rids and other.key not in self._open:
                name = other.node or other.key.agent
                turn = Place.of(other.agent_type, name, other.turns), other.last_event_s
                self._open[other.key] = turn
                self.paths.began(application, *turn, now_s)

    def ended(self, agent: Agent) -> None:
        """A request of the agent's is over, or the agent is; its turn ends with its last one."""
        if not agent.rids:
            self._open.pop(agent.key, None)

    def left(self, application: str, now_s: float, *, finished: bool) -> None:
        """The application is over, or its agents were forgotten."""
        if finished:
            self.paths.finished(application, now_s)
        self._graphs.pop(application, None)

    def forget(self, application: str) -> None:
        """No agent of the application is known any more."""
        self.paths.forget(application)

    def path_of(self, agent: Agent) -> tuple[float, float | None]:
        """When the agent's open turn began, and how long its application is expected to take from
        there on: by a graph with times that it declared, or else by what others of its kind took,
        or else by the nodes that are left in its graph."""
        turn = self._open.get(agent.key)
        if turn is None:
            return agent.last_event_s, None
        place, began_s = turn
        if not self.knows_paths:
            return began_s, None
        application = agent.key.application
        declared = self._declared_paths(application)
        if declared is None or not declared.has_times:
            learnt_s = self.paths.remaining_s(place)
            if learnt_s is not None or declared is None:
                return began_s, learnt_s
        first_s = self.paths.first_began_s(application, place)
        elapsed_s = 0.0 if first_s is None else began_s - first_s
        return began_s, declared.remaining_s(place.name, elapsed_s)

    def _declared_paths(self, application: str) -> DeclaredPaths | None:
        message = self.declared(application)
        if message is None or (graph := message.graph) is None:
            return None
        known = self._graphs.get(application)
        if known is None or known[0] is not graph:
            known = self._graphs[application] = graph, DeclaredPaths(graph)
        return known[1]
