"""Signals reach the ranks by both doors, with the key only."""

import pytest

from tests.server.exchange import eventually, generate
from tokencake_sglang.signals.client import Client
from tokencake_sglang.signals.transports import SignalError

pytestmark = pytest.mark.slow


@pytest.fixture(params=["http", "zmq"])
def target(extension, request):
    return extension.server.url if request.param == "http" else extension.server.zmq


def test_calls_reach_the_ranks(extension, target):
    with extension.client(target) as client:
        agent = client.agent("caller", application=f"calls over {target}")
        generate(extension.http, "Hello", 2, agent.tag)
        with agent.tool_call("search", predicted_s=30):
            eventually(lambda: extension.agents("stalled") == (1, 1), "the agent is stalled")
        extension.no_agent_is("stalled")
        agent.finish()
    finished = extension.status()["ranks"][0]["agents"].get("finished", 0)
    assert finished >= 1


def test_a_running_call_reports_to_the_ranks(extension, target):
    who = {"agent": "reporter", "application": f"progress over {target}"}
    with extension.client(target) as client:
        agent = client.agent(who["agent"], application=who["application"])
        generate(extension.http, "Hello", 2, who)
        with agent.tool_call("rag", stages=("query", "embed")) as call:
            call.progress(stage="embed")
            told = client.call_progress(**who, call_id=call.call_id, remaining_s=0.5)
            assert not told.repeat
            assert extension.status()["ranks"][0]["sequence"] >= told.sequence
        agent.finish()


def test_another_client_goes_on_where_the_first_one_was_lost(extension, target):
    who = {"agent": "survivor", "application": f"restart over {target}"}
    generate(extension.http, "Hello", 2, who)
    with extension.client(target) as client:
        client.call_start(**who, call_id="1", tool="search")
    with extension.client(target) as client:
        repeat = client.call_start(**who, call_id="1", tool="search")
        assert repeat.repeat
        finish = client.call_finish(**who, call_id="1")
        assert not finish.repeat


@pytest.mark.parametrize("key", [None, "open"], ids=["without", "wrong"])
def test_no_signal_is_taken_without_the_key(extension, target, key):
    before = extension.known()
    client = Client(target, api_key=key, strict=True)
    with client, pytest.raises(SignalError) as refused:
        client.agent_finish("somebody")
    assert refused.value.code == "unauthorized"
    assert extension.known() == before


def test_a_signal_that_makes_no_sense_is_refused_by_its_field(extension, target):
    client = extension.client(target)
    with client, pytest.raises(SignalError, match="predicted_s") as refused:
        client.call_start("somebody", call_id="1", tool="search", predicted_s=-1)
    assert refused.value.code == "invalid_message"
    assert "predicted_s" in extension.status()["front_door"]["refusals"][0]["message"]


def test_the_status_page_is_served(extension):
    page = extension.http.get("/tokencake/")
    assert page.status_code == 200
    assert "TokenCake" in page.text
