"""Two ranks with a file storage backend: a whole way down and up, under SGLang's consensus check."""

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
        *("--max-total-tokens", str(POOL_TOKENS), "--page-size", "16", "--hicache-ratio", "1.5"),
        *("--enable-tokencake", "--tokencake-hold-timeout-s", "60", *SLOW_LINK),
        *("--tokencake-upload-lead-s", "1", "--hicache-storage-backend", "file"),
        *("--tokencake-decision-log", str(directory / "decisions.jsonl")),
    )
    variables = {
        "SGLANG_CPU_OMP_THREADS_BIND": "0|1",
        "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1",
        "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(directory / "storage"),
    }
    model = seeded_llama(directory / "model")
    with Server(directory / "server.log", model, flags, variables=variables) as server:
        yield server, DecisionFile(directory / "decisions.jsonl"), directory / "storage"


def test_ranks_agree_on_what_comes_back_from_storage_and_answer_as_from_scratch(ranks):
    server, decisions, storage = ranks
    prompt, result = random_ids(1, TURN_TOKENS), random_ids(3, 40)
    key = ("ranks", "one")
    with Client(server.url, strict=True) as client:
        agent = client.agent("one", application="ranks")
        continued = prompt + generate(server.http, prompt, 8, agent.tag)["output_ids"] + result
        with agent.tool_call("pytest", predicted_s=20):
            for i in range(4):
                press(server.http, seed=100 + 10 * i)
            dropped = eventually(lambda: decisions.of(*key, "drop"), "the host tier drops it")
            eventually(lambda: decisions.of(*key, "hold"), "the upload is held", timeout_s=40)
        second = generate(server.http, continued, 24, agent.tag)
    fetched = [(line["reason"], line["tokens"]) for line in decisions.of(*key, "fetch")]
    tokens = sum(line["tokens"] for line in dropped)
    assert fetched == [("return_predicted", tokens), ("fetched", tokens)]
    returned = decisions.of(*key, "return")[0]
    assert returned["reason"] == "uploaded_in_time"
    assert returned["detail"]["fetched_tokens"] == tokens >= TURN_TOKENS
    for rank in range(2):
        assert len(list(storage.glob(f"*_{rank}_2.bin"))) >= tokens // 16

    # Not from storage either: it would answer with what is to be checked.
    eventually(lambda: server.http.post("/flush_cache").status_code == 200, "the writes have ended")
    for file in storage.glob("*.bin"):
        file.unlink()
    fresh = generate(server.http, continued, 24)
    assert fresh["meta_info"]["cached_tokens"] == 0
    assert fresh["output_ids"] == second["output_ids"]
    assert server.log.count("Rank consensus checker is enabled") == 2
    assert "Found rank divergence" not in server.log
