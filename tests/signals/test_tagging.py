import json

import pytest
from starlette.datastructures import Headers

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.signals.tagging import find_tag

PARAMS = {"tokencake": {"agent": "from-params"}}
HEADERS = {"x-tokencake-agent": "from-headers"}


def refusal(*args):
    with pytest.raises(AgentError) as caught:
        find_tag(*args)
    assert caught.value.code is ErrorCode.INVALID_TAG
    return caught.value.message


@pytest.mark.parametrize(
    ("params", "headers", "session_id", "agent"),
    [
        (PARAMS, HEADERS, "session", "from-params"),
        ({"other": 1}, HEADERS, "session", "from-headers"),
        (None, {"accept": "*/*"}, "session", "session"),
    ],
)
def test_parameters_beat_headers_beat_the_session(params, headers, session_id, agent):
    assert find_tag(params, headers, session_id).agent == agent


def test_a_request_that_speaks_of_no_agent_has_no_tag():
    assert find_tag(None, None, None) is None
    assert find_tag({}, {"accept": "*/*"}, "") is None


def test_all_fields_can_be_given_in_headers_of_any_case():
    headers = {
        "X-Tokencake-Agent": "a",
        "X-TokenCake-Application": "x",
        "x-tokencake-agent-type": "t",
        "x-tokencake-node": "n",
        "x-tokencake-critical": "True",
    }
    assert find_tag(None, headers, None) == AgentTag(
        agent="a", application="x", agent_type="t", node="n", critical=True
    )


@pytest.mark.parametrize(("text", "value"), [("1", True), ("false", False), ("0", False)])
def test_critical_reads_as_a_boolean(text, value):
    assert find_tag(None, HEADERS | {"x-tokencake-critical": text}, None).critical is value


HALF_A_PAIR = json.loads(r'"\ud800"')
"""What Python's JSON makes of an escaped lone surrogate: a text that cannot be sent or stored."""


@pytest.mark.parametrize("session_id", ["", "x" * 257, HALF_A_PAIR])
def test_a_session_that_cannot_be_a_name_is_no_tag(session_id):
    assert find_tag(None, None, session_id) is None


@pytest.mark.parametrize("field", ["agent", "application", "agent_type", "node", "tenant"])
def test_text_that_cannot_be_sent_to_a_rank_is_refused(field):
    message = refusal({"tokencake": {"agent": "a", field: HALF_A_PAIR}}, None, None)
    assert message == f"custom_params.tokencake.{field}: expected Unicode text, got '\\ud800'"


def test_a_refusal_can_be_sent_whatever_it_quotes():
    message = refusal({"tokencake": {"agent": "a", HALF_A_PAIR: 1}}, None, None)
    assert "\\ud800: unknown field" in message
    message.encode()


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (HEADERS | {"x-tokencake-critical": "yes"},
         "x-tokencake-critical: expected one of true, 1, false, 0, got 'yes'"),
        (HEADERS | {"x-tokencake-agnet": "a"},
         ("x-tokencake-agnet: unknown header; accepted are x-tokencake-agent, "
         "x-tokencake-application, x-tokencake-agent-type, x-tokencake-node, "
         "x-tokencake-critical, x-tokencake-tenant")),
        ({"x-tokencake-node": "n"},
         "x-tokencake-agent: missing; the other x-tokencake-* headers need it"),
        ({"x-tokencake-agent": ""},
         "x-tokencake-agent: Expected `str` of length >= 1, got ''"),
        (HEADERS | {"x-tokencake-agent-type": ""},
         "x-tokencake-agent-type: Expected `str` of length >= 1, got ''"),
    ],
)  # fmt: skip
def test_an_invalid_header_is_named(headers, message):
    assert refusal(None, headers, None) == message


def test_a_header_given_twice_is_refused():
    headers = Headers(raw=[(b"x-tokencake-agent", b"a"), (b"x-tokencake-agent", b"b")])
    assert refusal(None, headers, None) == "x-tokencake-agent: given twice; send it once"


def test_an_invalid_parameter_is_named():
    assert refusal({"tokencake": {"agent": 1}}, HEADERS, None) == (
        "custom_params.tokencake.agent: Expected `str`, got 1"
    )
    assert refusal({"tokencake": None}, None, None).startswith("custom_params.tokencake: expected")
