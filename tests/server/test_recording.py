"""A live server's requests as a replay file."""

import json
import os
import signal
import time

import pytest

from tests.models import tiny_llama
from tests.server.exchange import generate, random_ids
from tests.server.processes import TINY_FLAGS, Server
from tokencake_sglang.replay.tokens import common_prefix
from tokencake_sglang.replay.workload import read
from tokencake_sglang.signals.client import Client
from tokencake_sglang.temporal.duration import CallFeatures, DurationModel, Source

pytestmark = pytest.mark.slow

PROMPT = random_ids(1, 200)
RESULT = random_ids(2, 100)


def stream(http, prompt, new_tokens, tag):
    """The output of a streamed answer."""
    params = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    params["custom_params"] = {"tokencake": tag}
    body = {"input_ids": prompt, "sampling_params": params, "stream": True}
    with http.stream("POST", "/generate", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return json.loads(lines[-2])["output_ids"]


def test_a_recording_has_the_dependencies_and_the_sharing_of_what_was_asked(tmp_path):
    model, record = tiny_llama(tmp_path / "model"), tmp_path / "trace.jsonl"
    flags = (*TINY_FLAGS, "--max-total-tokens", "4096", "--enable-tokencake")
    durations = tmp_path / "durations"
    files = ("--tokencake-record", str(record), "--tokencake-durations-file", str(durations))
    server = Server(tmp_path / "log", model, (*flags, *files))
    with server, Client(server.url, strict=True) as client:
        coder = client.agent("coder", application="run", agent_type="coder", critical=True)
        said = generate(server.http, PROMPT, 60, coder.tag)["output_ids"]
        with coder.tool_call("pytest", predicted_s=0.5, stages=("collect", "run")) as call:
            time.sleep(0.2)
            call.progress(stage="run")
            time.sleep(0.2)
        second = [*PROMPT, *said, *RESULT]
        answer = stream(server.http, second, 40, coder.tag)
        generate(server.http, [*second, *answer], 5, {"agent": "critic", "application": "run"})
        generate(server.http, PROMPT, 3)
        bad = {"input_ids": random_ids(3, 40_000), "sampling_params": {"max_new_tokens": 3}}
        assert server.http.post("/generate", json=bad).status_code == 400
        both = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 4, "n": 2}}
        assert len(server.http.post("/generate", json=both).json()) == 2
        coder.finish()
        at_hand = read(record)
        assert len(at_hand.requests) >= 3, "lines come as they become certain"
        state = server.http.get("/tokencake/status").json()["recording"]
        assert state["state"] == "recording" and state["file"] == str(record)
        os.kill(server._process.pid, signal.SIGTERM)
        server._process.wait(40)
    workload = read(record)
    by_agent = {}
    for request in workload.requests:
        by_agent.setdefault(request.agent, []).append(request)
    first, again = by_agent["coder"]
    (critic,) = by_agent["critic"]
    block = workload.header.block_size
    assert (first.prompt_length, first.output_length) == (200, 60)
    assert (again.prompt_length, again.output_length) == (360, 40)
    assert (first.agent_type, first.critical) == ("coder", True)
    assert first.call.tool == "pytest" and first.call.declared_s == 0.5
    assert 0.4 <= first.call.wait_s < 5
    assert again.wait_for == (first.request_id,)
    assert critic.wait_for == (again.request_id,)
    whole = first.prompt + first.output
    assert common_prefix(whole, again.prompt) == 260 - 260 % block
    assert common_prefix(again.prompt + again.output, critic.prompt) == 400 - 400 % block
    assert [(r.prompt_length, r.output_length) for r in by_agent[None]] == [
        (200, 3),
        (200, 4),
        (200, 4),
    ]
    learnt = DurationModel.load(durations)
    pytest_call = CallFeatures("pytest", "coder", "run", stages=("collect", "run"))
    assert learnt.source(pytest_call) is Source.HISTORY
    second_stage = learnt.expect_after(pytest_call, finished=1, elapsed_s=50.0)
    assert second_stage.quantile(0.5, 50.0) < 55.0, "its own length is known"
    assert str(PROMPT[0]) not in record.read_text().split(), "no token ids"
