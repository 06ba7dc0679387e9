"""The extension changes when and where KV is, never what the model answers."""

import time

import pytest

from tests.server.exchange import TURN_TOKENS, eventually, generate, press
from tests.server.with_extension.conftest import (
    FIRST_TURN,
    NEW_TOKENS,
    TOOL_RESULT,
    ask_alone,
    ask_together,
)

pytestmark = pytest.mark.slow


def test_answers_are_those_of_stock_sglang(extension, stock):
    assert ask_alone(extension.http) == stock.alone
    assert ask_together(extension.http) == stock.together
    assert ask_together(extension.http, {"agent": "asker", "critical": True}) == stock.together


def test_an_agent_is_swapped_out_for_others_and_back_before_its_call_ends(extension, stock):
    assert extension.http.post("/flush_cache").status_code == 200
    key = ("cycle", "coder")

    def decided(action):
        return extension.decisions.of(*key, action)

    with extension.client() as client:
        agent = client.agent("coder", application="cycle")
        begin_s = time.monotonic()
        first = generate(extension.http, FIRST_TURN, NEW_TOKENS, agent.tag)["output_ids"]
        turn_s = time.monotonic() - begin_s
        assert first == stock.turns[0]

        with agent.tool_call("pytest", predicted_s=2 + 5 * turn_s):
            press(extension.http, seed=100)
            [hold] = eventually(lambda: decided("hold"), "the upload is held", 12 + 5 * turn_s)
        [upload] = decided("upload")
        assert upload["reason"] == "return_predicted"
        assert upload["tokens"] >= TURN_TOKENS, "it had not left the device"
        assert hold["now_s"] < upload["detail"]["expected_return_s"]

        second = generate(extension.http, FIRST_TURN + first + TOOL_RESULT, NEW_TOKENS, agent.tag)
        assert second["output_ids"] == stock.turns[1]
        assert second["meta_info"]["cached_tokens"] >= TURN_TOKENS
        agent.finish()

    [back] = decided("return")
    assert (back["reason"], back["tokens"]) == ("uploaded_in_time", upload["tokens"])
    status = extension.status()["ranks"][0]
    assert status["decisions"]["counts"]["return.uploaded_in_time"] >= 1
    assert status["temporal"]["held"] == 0
