"""Two ranks decide alike: a whole cycle with SGLang's own consensus check switched on."""

import pytest

from tests.models import seeded_llama
from tests.server.decisions import DecisionFile
from tests.server.exchange import (
    POOL_TOKENS,
    SLOW_LINK,
    TURN_TOKENS,
    eventually,
    generate,
    press,
    random_ids,
)
from tests.server.processes import MODEL_FLAGS, Server
from tokencake_sglang.signals.client import Client

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    flags = (
        *(*MODEL_FLAGS, "--skip-tokenizer-init", "--skip-server-warmup", "--tp-size", "2"),
        *("--max-total-tokens", str(POOL_TOKENS), "--enable-tokencake"),
        *("--tokencake-hold-timeout-s", "60", "--tokencake-upload-lead-s", "1"),
        *("--tokencake-upload-piece-tokens", "200"),
        *SLOW_LINK,
        *("--tokencake-decision-log", str(directory / "decisions.jsonl")),
        *("--tokencake-expected-agents", "1000", "--tokencake-expected-context-tokens", "1000"),
    )
    variables = {
        "SGLANG_CPU_OMP_THREADS_BIND": "0|1",
        "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1",
    }
    model = seeded_llama(directory / "model")
    with Server(directory / "server.log", model, flags, variables=variables) as server:
        yield server, DecisionFile(directory / "decisions.jsonl")


def test_ranks_agree_through_release_and_upload_and_answer_as_from_scratch(ranks):
    server, decisions = ranks
    prompts = [random_ids(seed, TURN_TOKENS) for seed in (1, 2)]
    results = [random_ids(seed, 40) for seed in (3, 4)]
    answers = []
    with Client(server.url, strict=True) as client:
        agents = [client.agent(name, application="ranks") for name in ("one", "two")]
        for agent, prompt, result in zip(agents, prompts, results, strict=True):
            first = generate(server.http, prompt, 8, agent.tag)["output_ids"]
            continued = prompt + first + result
            with agent.tool_call("pytest", predicted_s=5):
                press(server.http, seed=100)
                key = ("ranks", agent.name)
                eventually(lambda key=key: decisions.of(*key, "hold"), "the upload is held")
            second = generate(server.http, continued, 24, agent.tag)
            assert second["meta_info"]["cached_tokens"] >= TURN_TOKENS
            answers.append((continued, second["output_ids"]))
            reasons = {line["reason"] for line in decisions.of(*key, "release")}
            assert reasons == {"in_call"}
            assert decisions.of(*key, "upload")  # how many pieces depends on how long steps take
            assert [line["reason"] for line in decisions.of(*key, "return")] == ["uploaded_in_time"]

    assert server.http.post("/flush_cache").status_code == 200
    for prompt, answer in answers:
        fresh = generate(server.http, prompt, 24)
        assert fresh["meta_info"]["cached_tokens"] == 0
        assert fresh["output_ids"] == answer
    assert len({tuple(answer) for _, answer in answers}) == 2
    assert server.log.count("Rank consensus checker is enabled") == 2
    assert "Found rank divergence" not in server.log


def test_one_rank_says_that_the_host_tier_is_too_small(ranks):
    server, _ = ranks
    assert server.log.count("1,000 agents of 1,000 have 1,000,000") == 1
