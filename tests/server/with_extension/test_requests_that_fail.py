"""Requests that end in another way than with their answer leave no agent active."""

import pytest

from tests.server.exchange import POOL_TOKENS, eventually, generate, random_ids

pytestmark = pytest.mark.slow


def params(agent, **others):
    return {"custom_params": {"tokencake": {"agent": agent}}, "ignore_eos": True, **others}


def test_a_client_that_leaves_its_stream_ends_its_turn(extension):
    body = {"text": "Tell me all:", "stream": True}
    body["sampling_params"] = params("leaver", max_new_tokens=1500)
    with extension.http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        eventually(lambda: extension.agents("active") == (1, 1), "the agent is active")
    extension.no_agent_is("active")
    again = generate(extension.http, "Tell me all:", 4, {"agent": "leaver"})
    assert again["meta_info"]["finish_reason"]["type"] == "length"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_prompt_that_is_too_long_ends_its_turn(extension, stream):
    body = {"input_ids": random_ids(9, POOL_TOKENS + 100), "stream": stream}
    response = extension.http.post("/generate", json={**body, "sampling_params": params("long")})
    assert "exceeds the maximum allowed length" in response.text
    extension.no_agent_is("active")


def test_parameters_that_cannot_be_sampled_with_end_the_turn(extension):
    body = {"text": "Hello", "sampling_params": params("sampler", temperature=-1.0)}
    assert extension.http.post("/generate", json=body).status_code == 400
    extension.no_agent_is("active")


def test_an_abort_by_request_id_ends_the_turn(extension):
    body = {"text": "Tell me all:", "stream": True, "rid": "to-abort"}
    body["sampling_params"] = params("aborted", max_new_tokens=1500)
    with extension.http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert extension.http.post("/abort_request", json={"rid": "to-abort"}).status_code == 200
        assert "abort" in "".join(lines)
    extension.no_agent_is("active")


def test_the_cache_can_be_flushed_between_turns(extension):
    tag = {"agent": "flushed"}
    before = generate(extension.http, "Once upon a time", 8, tag)
    resets = extension.status()["ranks"][0]["resets"]
    assert extension.http.post("/flush_cache").status_code == 200
    rank = extension.status()["ranks"][0]
    assert (rank["resets"], rank["residents"]) == (resets + 1, 0)
    assert rank["available_tokens"] == rank["pool_tokens"]
    after = generate(extension.http, "Once upon a time", 8, tag)
    assert after["output_ids"] == before["output_ids"]
    assert after["meta_info"]["cached_tokens"] == 0
