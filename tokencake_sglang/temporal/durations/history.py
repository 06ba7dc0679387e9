"""Durations per key, each level of keys leaning on the one above it while it knows little.

    p_level = (n · counts + c · p_above) / (n + c)

is the mean of a Dirichlet process with concentration c around the level above (Ferguson 1973;
hierarchies of them: Teh et al. 2006). At the top is a log-logistic around the default.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec
import numpy as np

from tokencake_sglang.temporal.durations.grid import BINS, Floats, bin_of, position, spread

MAX_NODES = 2048
HUGE = 1e150


class CallFeatures(msgspec.Struct, frozen=True, gc=False):
    """What is known of a call when it starts.

    Args:
        tool: None for a call of unknown tool; then its agent type and application must do.
        given_s: the caller's own estimate of the whole length.
        argument_key: stands for the arguments; calls with the same are expected to take about as long.
        argument_size: bytes, tokens or items, always the same unit for a tool.
        stages: names of the stages the call goes through, in order.
    """

    tool: str | None = None
    agent_type: str = ""
    application: str | None = None
    given_s: float | None = None
    argument_key: str | None = None
    argument_size: int | None = None
    stages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Level:
    """``memory``: observations after which the weight of an old one has fallen to 1/e."""

    name: str
    concentration: float
    memory: float
    learned: bool = False
    """Whether this level may turn out to be worth less: 4, 16 times the concentration, or none."""


LEVELS = (
    Level("all", 2.0, 2000.0),
    Level("tool", 1.0, 2000.0),
    Level("agent_type", 2.0, 2000.0),
    Level("size", 8.0, 500.0, learned=True),
    Level("application", 8.0, 100.0, learned=True),
    Level("arguments", 4.0, 50.0),
)
BY_AGENT_TYPE = 2

DISTRUST = (1.0, 4.0, 16.0, 1e9)
FORGETTING = 0.995

Key = tuple[int, str | None, str | None, str | int | None]


class Histogram:
    """Weights per bin; older ones are forgotten by giving newer ones ever more weight."""

    __slots__ = ("last", "latest", "steps", "total", "weights")

    def __init__(self, bins: int) -> None:
        self.weights: Floats = np.zeros(bins)
        self.total = 0.0
        self.latest = 1.0
        """The weight of the latest observation."""
        self.last = 0.0
        """Its place."""
        self.steps = 0.0
        """How far apart observations are that follow one another, in bins, on average."""

    @property
    def count(self) -> float:
        """Observations that it is worth; at most the memory."""
        return self.total / self.latest

    def add(self, place: float, memory: float, deviation: float) -> None:
        """Adds one as a bell of ``deviation`` bins."""
        if self.total:
            count = self.total / self.latest
            self.steps += (abs(place - self.last) - self.steps) / count
        self.last = place
        self.latest *= memory / (memory - 1.0)
        if self.latest > HUGE:
            self.weights *= 1.0 / self.latest
            self.total /= self.latest
            self.latest = 1.0
        self.total += self.latest
        spread(self.weights, place, self.latest, deviation)


def bell(node: Histogram) -> float:
    """Deviation in bins of the next duration's bell.

    A factor of 1.4 at first and at last 1.06; wider, by three quarters of Silverman's rule, where
    durations lie far apart. Without that a tool of milliseconds and minutes would be lone spikes,
    and an estimate between two of them would seem impossible.
    """
    more = node.count + 1.0
    return max(1.0, 6.0 * more**-0.3, 0.6 * node.steps * more**-0.2)


class Trust:
    """How far one level is to be believed, against the level above it.

    Each degree of distrust has a running log score (with forgetting) of what it has predicted; a
    level that never paid ends up left out.
    """

    __slots__ = ("concentrations", "scores", "weights")

    def __init__(self, level: Level, scores: list[float] | None = None) -> None:
        degrees = DISTRUST if level.learned else (1.0,)
        self.concentrations = [level.concentration * degree for degree in degrees]
        self.scores = scores or [0.0] * len(degrees)
        self._weigh()

    def _weigh(self) -> None:
        best = max(self.scores)
        raw = [math.exp(score - best) for score in self.scores]
        sum_ = math.fsum(raw)
        self.weights = [weight / sum_ for weight in raw]

    def share(self, count: float) -> float:
        """n / (n + c), averaged over the degrees."""
        if len(self.weights) == 1:
            return count / (count + self.concentrations[0])
        a, b, c, d = self.concentrations
        u, v, w, x = self.weights
        return count * (u / (count + a) + v / (count + b) + w / (count + c) + x / (count + d))

    def learn(self, count: float, own: float, above: float) -> None:
        """``own``, ``above``: the probabilities of what came, by this level and the one above."""
        if len(self.weights) > 1:
            scores = []
            for score, concentration in zip(self.scores, self.concentrations, strict=True):
                probability = (count * own + concentration * above) / (count + concentration)
                scores.append(FORGETTING * score + math.log(max(probability, 1e-12)))
            self.scores = scores
            self._weigh()


@dataclass
class History:
    """All histograms of durations, at most ``max_nodes``; those longest unused are forgotten."""

    prior: Floats
    max_nodes: int = MAX_NODES
    nodes: OrderedDict[Key, Histogram] = field(default_factory=OrderedDict)
    trust: list[Trust] = field(default_factory=lambda: [Trust(level) for level in LEVELS])

    @staticmethod
    def keys(call: CallFeatures) -> list[Key]:
        """Of the levels that the call's features allow, from the widest to the narrowest."""
        tool, agent_type, size = call.tool, call.agent_type, call.argument_size
        keys: list[Key] = [
            (0, None, None, None),
            (1, tool, None, None),
            (BY_AGENT_TYPE, tool, agent_type, None),
        ]
        if size is not None:
            keys.append((3, tool, agent_type, int(2 * math.log2(max(size, 0) + 1))))
        if call.application is not None:
            keys.append((4, tool, agent_type, call.application))
        if call.argument_key is not None:
            keys.append((5, tool, agent_type, call.argument_key))
        return keys

    def count(self, call: CallFeatures) -> float:
        """How many calls of this tool by this type of agent are known."""
        node = self.nodes.get((BY_AGENT_TYPE, call.tool, call.agent_type, None))
        return 0.0 if node is None else node.count

    def mass(self, call: CallFeatures) -> Floats:
        """Probability per bin; changes nothing."""
        # From the narrowest: each level's part is its share of what the narrower ones leave.
        left = 1.0
        parts: list[tuple[Floats, float]] = []
        for key in reversed(self.keys(call)):
            node = self.nodes.get(key)
            if node is not None:
                own = self.trust[key[0]].share(node.total / node.latest)
                parts.append((node.weights, left * own / node.total))
                left *= 1.0 - own
        mixed = self.prior * left
        for weights, factor in parts:
            mixed += weights * factor
        return mixed

    def observe(self, call: CallFeatures, duration_s: float) -> None:
        index, place = bin_of(duration_s), position(duration_s)
        probability = float(self.prior[index])
        for key in self.keys(call):
            number = key[0]
            node = self.nodes.get(key)
            if node is None:
                node = self.nodes[key] = Histogram(BINS)
            else:
                own = float(node.weights[index]) / node.total
                count, trust = node.total / node.latest, self.trust[number]
                share = trust.share(count)
                trust.learn(count, own, probability)
                probability = share * own + (1.0 - share) * probability
                self.nodes.move_to_end(key)
            node.add(place, LEVELS[number].memory, bell(node))
        while len(self.nodes) > self.max_nodes:
            self.nodes.popitem(last=False)
