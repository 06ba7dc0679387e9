"""The same model on stock SGLang, then on a server with the extension: one after the other."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.smollm2 import ensure_model
from tests.server.decisions import DecisionFile
from tests.server.exchange import POOL_TOKENS, TURN_TOKENS, eventually, generate, random_ids
from tests.server.processes import MODEL_FLAGS, SGLANG_SERVE, Server
from tokencake_sglang.signals.client import Client

API_KEY = "sesame"
NEW_TOKENS = 24
PROMPTS = (
    "The capital of France is",
    "The capital of France is Paris. The capital of Italy is",
    "def fibonacci(n):\n    ",
    "Once upon a time there was a girl who lived by the sea.",
    "1, 2, 3, 4, 5, 6,",
    "Water boils at a temperature of",
)
FLAGS = (*MODEL_FLAGS, "--max-total-tokens", str(POOL_TOKENS), "--skip-server-warmup")

# SmolLM2-135M has 46 kB a token: on this link no forward hides the load of a turn.
CONFIG = """
decision_log = "{decision_log}"
hold_timeout_s = 60.0
upload_lead_s = 1.0
link_bytes_per_s = 5e7
"""


@dataclass(frozen=True)
class Answers:
    """Output tokens of one server: to each prompt alone, to all at once, to two turns."""

    alone: list[list[int]]
    together: list[list[int]]
    turns: list[list[int]]


def ask_alone(http: httpx.Client, tag: dict[str, Any] | None = None) -> list[list[int]]:
    return [generate(http, prompt, NEW_TOKENS, tag)["output_ids"] for prompt in PROMPTS]


def ask_together(http: httpx.Client, tag: dict[str, Any] | None = None) -> list[list[int]]:
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        answers = threads.map(lambda prompt: generate(http, prompt, NEW_TOKENS, tag), PROMPTS)
        return [answer["output_ids"] for answer in answers]


FIRST_TURN = random_ids(1, TURN_TOKENS, vocabulary=40_000)
TOOL_RESULT = random_ids(2, 40, vocabulary=40_000)


@pytest.fixture(scope="package")
def model() -> Path:
    return ensure_model()


@pytest.fixture(scope="package")
def stock(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What stock SGLang answers. Its server is gone when this returns."""
    with Server(tmp_path_factory.mktemp("stock") / "server.log", model, FLAGS) as server:
        first = generate(server.http, FIRST_TURN, NEW_TOKENS)["output_ids"]
        second = generate(server.http, FIRST_TURN + first + TOOL_RESULT, NEW_TOKENS)["output_ids"]
        return Answers(ask_alone(server.http), ask_together(server.http), [first, second])


class Extension:
    """The server with the extension, and what its ranks decided."""

    def __init__(self, server: Server, decisions: DecisionFile) -> None:
        self.server = server
        self.http = server.http
        self.decisions = decisions

    def status(self) -> dict[str, Any]:
        response = self.http.get("/tokencake/status")
        assert response.status_code == 200, response.text
        return response.json()

    def agents(self, state: str) -> tuple[int, int]:
        """How many agents the front door and the rank see in a state."""
        status = self.status()
        return (status["front_door"]["agents"][state], status["ranks"][0]["agents"].get(state, 0))

    def known(self) -> dict[str, Any]:
        """Whatever an agent's request or an accepted signal would change; time changes none of it."""
        status = self.status()
        front_door = status["front_door"]
        return {
            "agents": sum(front_door["agents"].values()),
            "accepted": front_door["signals"]["accepted"],
            "turns": {
                name: count
                for name, count in status["ranks"][0]["decisions"]["counts"].items()
                if name.startswith("return.")
            },
        }

    def no_agent_is(self, state: str) -> None:
        eventually(lambda: self.agents(state) == (0, 0), f"no agent is {state}")

    def client(self, target: str | None = None) -> Client:
        """A client over ZeroMQ unless another target is given; failures raise."""
        return Client(target or self.server.zmq, api_key=API_KEY, strict=True)

    def short_call(self, agent: str, application: str | None = None) -> None:
        """A tool call of no length: the ranks record how the agent's next request finds its KV."""
        with self.client() as client, client.agent(agent, application).tool_call("search"):
            pass

    def returns(self, agent: str, application: str | None = None) -> int:
        """Calls that ended with a request of an agent whose turns the ranks know by that name."""
        return len(self.decisions.of(application or agent, agent, "return"))


@pytest.fixture(scope="package")
def extension_process(
    model: Path, stock: Answers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Extension]:
    directory = tmp_path_factory.mktemp("extension")
    decision_log = directory / "decisions.jsonl"
    config = directory / "tokencake.toml"
    config.write_text(CONFIG.format(decision_log=decision_log))
    with Server(
        directory / "server.log",
        model,
        (*FLAGS, "--enable-tokencake", "--tokencake-config", str(config)),
        launcher=SGLANG_SERVE,
        api_key=API_KEY,
    ) as server:
        yield Extension(server, DecisionFile(decision_log))


@pytest.fixture
def extension(extension_process: Extension) -> Iterator[Extension]:
    """The server with no agent active or in a call, before and after the test."""
    extension_process.no_agent_is("active")
    extension_process.no_agent_is("stalled")
    yield extension_process
    extension_process.no_agent_is("active")
    extension_process.no_agent_is("stalled")
