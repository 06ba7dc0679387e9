"""Who sends a request reaches the ranks by every route, and what is no tag is refused or ignored."""

import itertools

import httpx
import pytest

from tests.server.with_extension.routes import ROUTE_IDS, ROUTES

pytestmark = pytest.mark.slow

ROUTES_AND_CARRIERS = [
    *((route, "headers") for route in ROUTES),
    *((route, "custom_params") for route in ROUTES if route.takes_custom_params),
]
names = (f"agent-{number}" for number in itertools.count())


def post(extension, path, body, headers=None, expected=200):
    response = extension.http.post(path, json=body, headers=headers)
    assert response.status_code == expected, response.text
    return response


@pytest.mark.parametrize(
    ("route", "carrier"),
    ROUTES_AND_CARRIERS,
    ids=[f"{carrier} {route.path}" for route, carrier in ROUTES_AND_CARRIERS],
)
def test_the_agent_of_every_turn_reaches_the_ranks_streaming_or_not(extension, route, carrier):
    agent, application = next(names), "identity"
    tag = {"agent": agent, "application": application}
    headers = {f"x-tokencake-{field}": value for field, value in tag.items()}
    body = route.body
    if carrier == "custom_params":
        headers, body = {}, route.with_custom_params({"tokencake": tag})
    post(extension, route.path, {**body, "stream": False}, headers)
    for stream in (True, False):
        extension.short_call(agent, application)
        post(extension, route.path, {**body, "stream": stream}, headers)
    assert extension.returns(agent, application) == 2


def test_a_session_is_an_agent_where_nothing_else_is_said(extension):
    session = next(names)
    body = {**ROUTES[0].body, "session_id": session}
    post(extension, "/generate", body)
    extension.short_call(session)
    post(extension, "/generate", body)
    assert extension.returns(session) == 1


def test_each_request_of_a_batch_has_its_own_agent(extension):
    agents = [next(names), None, next(names)]
    params = [
        {
            "max_new_tokens": 2,
            **({"custom_params": {"tokencake": {"agent": agent}}} if agent else {}),
        }
        for agent in agents
    ]
    body = {"text": ["One", "Two", "Three"], "sampling_params": params}
    assert len(post(extension, "/generate", body).json()) == 3
    tagged = [agent for agent in agents if agent]
    for agent in tagged:
        extension.short_call(agent)
    assert len(post(extension, "/generate", body).json()) == 3
    assert [extension.returns(agent) for agent in tagged] == [1, 1]


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_several_answers_to_one_request_are_one_turn(extension, path):
    agent = next(names)
    route = next(route for route in ROUTES if route.path == path)
    body = route.with_custom_params({"tokencake": {"agent": agent}})
    if path == "/generate":
        body["sampling_params"]["n"] = 2
    else:
        body["n"] = 2
    post(extension, path, {**body, "stream": False})
    extension.short_call(agent)
    post(extension, path, {**body, "stream": True})
    assert extension.returns(agent) == 1


def test_untagged_requests_are_not_noticed(extension):
    before = extension.known()
    for route in ROUTES:
        for stream in (False, True):
            post(extension, route.path, {**route.body, "stream": stream})
    assert extension.known() == before


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
def test_a_bad_tag_is_refused_by_its_field_before_anything_else(extension, route, stream):
    before = extension.known()
    by_header = post(
        extension,
        route.path,
        {**route.body, "stream": stream},
        {"x-tokencake-agent": "a", "x-tokencake-critical": "perhaps"},
        expected=400,
    )
    tag = {"agent": "a", "critical": "perhaps"}
    body = {**route.with_custom_params({"tokencake": tag}), "stream": stream}
    by_params = post(extension, route.path, body, expected=400)
    assert "x-tokencake-critical: " in by_header.json()["error"]["message"]
    assert "custom_params.tokencake.critical: " in by_params.json()["error"]["message"]
    assert extension.known() == before


def test_a_bad_tag_without_the_key_is_told_nothing(extension):
    response = httpx.post(
        f"{extension.server.url}/generate",
        json=ROUTES[0].body,
        headers={"x-tokencake-critical": "perhaps"},
    )
    assert response.status_code == 401
    assert "tokencake" not in response.text
