"""The middleware in front of a real Starlette app, and alone where messages matter."""

import asyncio
import json

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tokencake_sglang.signals.tag_middleware import TagMiddleware

TAG = {"tokencake": {"agent": "coder"}}
BAD_TAG = {"tokencake": {"agent": "coder", "critical": "yes"}}


def build():
    """The app, and the bodies that reached its routes."""
    bodies = []

    async def echo(request: Request):
        bodies.append(await request.body())
        return JSONResponse({"got": len(bodies[-1])})

    async def stream(request: Request):
        bodies.append(await request.body())

        async def parts():
            for part in ("one", "two"):
                yield f"data: {part}\n\n"

        return StreamingResponse(parts(), media_type="text/event-stream")

    routes = [
        Route("/generate", echo, methods=["GET", "POST", "PUT"]),
        Route("/stream", stream, methods=["POST"]),
    ]
    return TagMiddleware(Starlette(routes=routes)), bodies


def request(path="/generate", method="POST", **options):
    app, bodies = build()

    async def send():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send()), bodies


@pytest.mark.parametrize("path", ["/generate", "/stream"])
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"custom_params": BAD_TAG}, "custom_params.tokencake.critical"),
        ({"sampling_params": {"custom_params": BAD_TAG}},
         "sampling_params.custom_params.tokencake.critical"),
        ({"sampling_params": [{"custom_params": TAG}, {"custom_params": BAD_TAG}]},
         "sampling_params[1].custom_params.tokencake.critical"),
    ],
)  # fmt: skip
def test_an_invalid_tag_is_a_400_that_names_the_field_also_when_streaming(path, body, param):
    response, bodies = request(path, json=body)
    assert response.status_code == 400
    assert response.json() == {
        "error": {
            "message": f"{param}: Expected `bool`, got 'yes'",
            "type": "BadRequestError",
            "code": 400,
            "param": param,
            "tokencake": "invalid_tag",
        }
    }
    assert bodies == []


def test_an_invalid_header_is_a_400_that_names_it():
    response, bodies = request(json={}, headers={"x-tokencake-critical": "yes"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-tokencake-critical"
    assert bodies == []


@pytest.mark.parametrize(
    "body",
    [
        {"text": "hi"},
        {"custom_params": TAG, "text": "hi"},
        {"sampling_params": [{"custom_params": TAG}, None, 3]},
        {"text": 'he said "tokencake"', "sampling_params": None},
        {"custom_params": ["tokencake"]},
        ["tokencake"],
    ],
)
def test_a_valid_or_untagged_body_arrives_byte_for_byte(body):
    content = json.dumps(body, indent=3).encode()
    response, bodies = request(content=content, headers={"content-type": "application/json"})
    assert (response.status_code, bodies) == (200, [content])


@pytest.mark.parametrize("content", [b'{"tokencake"', b'"tokencake"' + b"[" * 5000, b"\xff\xfe"])
def test_a_body_that_is_no_json_is_left_to_its_route(content):
    response, bodies = request(content=content, headers={"content-type": "application/json"})
    assert (response.status_code, bodies) == (200, [content])


def test_streamed_answers_pass_through():
    response, _ = request("/stream", json={"custom_params": TAG})
    assert response.text == "data: one\n\ndata: two\n\n"


def test_only_posts_are_looked_at():
    response, _ = request(method="PUT", json={"custom_params": BAD_TAG})
    assert response.status_code == 200


# -- messages ---------------------------------------------------------------------------------

SCOPE = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}


def exchange(messages, scope=SCOPE):
    """What the app receives when the server delivers ``messages``."""
    received, pending = [], list(messages)

    async def receive():
        return pending.pop(0)

    async def app(scope, receive, send):
        for _ in messages:
            received.append(await receive())

    async def send(message):
        raise AssertionError(message)

    asyncio.run(TagMiddleware(app)(scope, receive, send))
    return received


def chunk(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_pieces_is_replayed_in_the_same_pieces_and_then_the_disconnect():
    messages = [chunk(b'{"a": "toke'), chunk(b'ncake"'), chunk(b"}", False)]
    messages.append({"type": "http.disconnect"})
    assert exchange(messages) == messages


def test_a_disconnect_in_the_middle_of_the_body_reaches_the_app():
    messages = [chunk(b'{"a"'), {"type": "http.disconnect"}]
    assert exchange(messages) == messages


def test_a_tag_split_over_pieces_is_found():
    head, tail = json.dumps({"custom_params": BAD_TAG}).encode().split(b"kenca")
    pending = [chunk(head), chunk(b"kenca"), chunk(tail, False)]
    answer = []

    async def receive():
        return pending.pop(0)

    async def send(message):
        answer.append(message)

    async def app(*_):
        raise AssertionError("reached the app")

    asyncio.run(TagMiddleware(app)(SCOPE, receive, send))
    assert answer[0]["status"] == 400


def test_an_upload_is_not_collected_before_its_route_runs():
    reads = []

    async def receive():
        reads.append(1)
        return chunk(b"audio")

    async def app(scope, receive, send):
        assert reads == []
        await receive()

    scope = SCOPE | {"headers": [(b"content-type", b"multipart/form-data; boundary=x")]}
    asyncio.run(TagMiddleware(app)(scope, receive, None))
    assert reads == [1]


def test_websockets_and_lifespans_pass():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    for kind in ("websocket", "lifespan"):
        asyncio.run(TagMiddleware(app)({"type": kind}, None, None))
    assert seen == ["websocket", "lifespan"]
