"""What a scheduling policy is told and asked, and what it may answer. Pure.

A policy proposes; the engine applies what can be applied, and reports through the next step's
``View`` what came of it. The base class decides nothing, which is SGLang as it is. Every rank of
a server asks its own copy the same questions in the same order, so a policy reads no clock and
draws no random numbers of its own.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.table import Agent, Call
from tokencake_sglang.agents.workflow import Workflow


@dataclass(frozen=True, slots=True)
class Machine:
    """What a policy may know of the server it runs on. Tokens, and seconds for tokens."""

    pool_tokens: int
    host_tokens: int
    page_size: int
    link_tokens_per_s: float

    def transfer_s(self, tokens: int) -> float:
        """One way over the link between host and device."""
        return tokens / self.link_tokens_per_s


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is told beforehand, in a benchmark or by applications that declare themselves.

    ``prefill_s(new_tokens, context_tokens)`` and ``decode_s(requests, kv_tokens)`` are an offline
    profile of the server: seconds of one forward pass.
    """

    workflow: Workflow
    prefill_s: Callable[[int, int], float]
    decode_s: Callable[[int, int], float]


@dataclass(slots=True)
class Request:
    """A request that is queued or runs. The engine keeps it up to date; a policy only reads it.

    ``agent`` is None for an untagged request. ``tokens`` is its prompt and what it has generated.
    ``cached_tokens`` of them were on the device when the scheduler last looked. ``queued_s`` is
    when this rank first saw it.
    """

    rid: str
    agent: Agent | None
    queued_s: float
    prompt_tokens: int
    output_limit: int
    tokens: int = 0
    cached_tokens: int = 0
    retractions: int = 0
    admitted_s: float | None = None

    @property
    def key(self) -> AgentKey | None:
        return None if self.agent is None else self.agent.key

    @property
    def program(self) -> str:
        """The application, for policies that think in whole programs; untagged: its own."""
        return self.rid if self.agent is None else self.agent.key.application


class Cached(Protocol):
    """Where an agent's path (the KV of its last turn, shared prefix included) is, in tokens.

    Read what is needed when it is needed: on a server each of these is a walk along the path as it
    is at that moment.
    """

    @property
    def tokens(self) -> int:
        """On the device or on the host."""
        ...

    @property
    def host_only_tokens(self) -> int: ...

    @property
    def releasable_tokens(self) -> int:
        """Can be given up at once, nothing lost: exclusive, unlocked, with a finished copy."""
        ...

    @property
    def exclusive_tokens(self) -> int:
        """On the device, unlocked and no other path's, with or without a host copy."""
        ...

    @property
    def uncopied_tokens(self) -> int:
        """Without a host copy, finished or under way."""
        ...


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """``Cached`` as numbers that stay."""

    device_tokens: int
    host_only_tokens: int
    releasable_tokens: int
    exclusive_tokens: int
    uncopied_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.device_tokens + self.host_only_tokens


NOTHING_CACHED = CachedTokens(0, 0, 0, 0)


class View(Protocol):
    """What the engine shows at a step. Token counts are slots of the device pool."""

    @property
    def now_s(self) -> float: ...

    @property
    def machine(self) -> Machine: ...

    @property
    def free_tokens(self) -> int:
        """Slots that hold nothing."""
        ...

    @property
    def evictable_tokens(self) -> int:
        """Slots that hold unlocked cache."""
        ...

    @property
    def queue(self) -> Sequence[Request]:
        """Requests that wait, in SGLang's order or that of the last admission."""
        ...

    @property
    def running(self) -> Sequence[Request]: ...

    @property
    def left_waiting(self) -> bool:
        """Whether the last admission left requests waiting."""
        ...

    def cached(self, key: AgentKey) -> Cached: ...

    def is_kept(self, key: AgentKey) -> bool:
        """Whether the agent's path is pinned by ``Keep`` or by a finished ``Upload``."""
        ...

    def is_uploading(self, key: AgentKey) -> bool:
        """Whether a piece of the agent's path is on its way to the device."""
        ...


@dataclass(frozen=True, slots=True)
class Keep:
    """Pin the agent's path on the device until ``LetGo``, or until memory is needed badly."""

    key: AgentKey
    reason: str


@dataclass(frozen=True, slots=True)
class LetGo:
    """End what ``Keep`` or ``Upload`` pinned."""

    key: AgentKey
    reason: str


@dataclass(frozen=True, slots=True)
class Insure:
    """Copy the path to the host; the device keeps it.

    Not done, and to be repeated, when the host is full, or when what requests are about to take
    would not be left: the path is locked until its copy is done.
    """

    key: AgentKey
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Give up the device slots of the path's exclusive part that has a finished host copy."""

    key: AgentKey
    reason: str


@dataclass(frozen=True, slots=True)
class Discard:
    """Give up the path's exclusive part on the device, copied or not."""

    key: AgentKey
    reason: str


@dataclass(frozen=True, slots=True)
class Upload:
    """Bring the path back, piece by piece, and keep it until a request that uses it is admitted.

    To be repeated each step as long as it is wanted; the first that can start starts.
    """

    key: AgentKey
    reason: str


Decision = Keep | LetGo | Insure | Release | Discard | Upload


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """A node of the tree that may lose its device slots (or its host copy, if it has none).

    ``agents`` are those whose path ends in this node or below it: who would miss it.
    ``depth_tokens`` is where the node begins on its path. ``last_access`` is SGLang's own logical
    time: larger is more recent.
    """

    agents: tuple[AgentKey, ...]
    tokens: int
    depth_tokens: int
    last_access: float
    on_host: bool
    on_device: bool = True


@dataclass
class Policy:
    """Decides nothing: SGLang as it is. Subclasses override what they decide."""

    machine: Machine
    knowledge: Knowledge | None = field(default=None, init=False)

    automatic_backup = True
    """False: nothing is copied to the host but what the policy asks for."""

    orders_eviction = False
    """True: ``eviction_rank`` replaces SGLang's eviction order, on both tiers."""

    reopens_admission = False
    """True: once the memory was found full, admission is tried again as soon as a request has come
    or memory has become evictable. SGLang waits until a running request has ended."""

    backfills = False
    """True: admission passes over a request that does not fit and tries those behind it."""

    refusal_ends_pass = False
    """True: nobody behind a request that ``admits`` refuses is looked at in this pass. For policies
    whose order puts all they would admit first: looking at a long queue is slow."""

    # -- told ---------------------------------------------------------------------------------

    def prepare(self, knowledge: Knowledge) -> None:
        """What is known beforehand; called at most once, before the first request."""
        self.knowledge = knowledge

    def request_queued(self, request: Request, now_s: float) -> None:
        """The scheduler sees a request for the first time."""

    def request_admitted(self, request: Request, now_s: float) -> None:
        """The request's prompt is being computed; comes again after a retraction."""

    def request_retracted(self, request: Request, now_s: float) -> None:
        """SGLang took the running request's memory: it queues again."""

    def request_finished(self, request: Request, now_s: float) -> None:
        """The request's last token is out and its KV is in the tree."""

    def call_started(self, agent: Agent, call: Call, now_s: float) -> None:
        """The agent stopped at a tool call; may overtake ``request_finished``."""

    def call_finished(self, agent: Agent, call: Call, now_s: float) -> None:
        """The call returned, or was given up: the agent's next request is on its way."""

    def agent_finished(self, key: AgentKey, now_s: float) -> None:
        """The agent will send no further request, or was forgotten."""

    # -- asked --------------------------------------------------------------------------------

    def decide(self, view: View) -> Iterable[Decision]:
        """What to do now; asked once a step, before admission. Applied as it is iterated, so a
        generator sees in ``view`` what its earlier decisions did."""
        return ()

    def order(self, view: View) -> Sequence[int] | None:
        """Indices of ``view.queue`` in the order to admit; None keeps SGLang's order."""
        return None

    def admits(self, request: Request, view: View) -> bool:
        """Whether the request may be admitted now; asked in the queue's order. When nothing at
        all runs the first of the queue is admitted whatever is answered."""
        return True

    def withheld_tokens(self, request: Request, view: View) -> int:
        """Slots that admission of ``request`` must leave free, beyond SGLang's own reserve."""
        return 0

    def gives_up(self, kept: Sequence[AgentKey], view: View) -> AgentKey:
        """Which of the pinned agents loses its pin when memory is needed badly."""
        return kept[0]

    def eviction_rank(self, node: EvictionCandidate) -> tuple[float, ...]:
        """The smallest is evicted first; a node's children always go before it."""
        return (node.last_access,)


NEVER_S = math.inf
"""A next use that will not come."""
