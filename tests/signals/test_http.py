import asyncio
import time

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException

from tokencake_sglang.agents.events import MAX_SIGNAL_BYTES
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.signals.front_door import FrontDoor
from tokencake_sglang.signals.http import create_router

START = {"agent": "coder", "call_id": "c", "tool": "test"}


class Bench:
    def __init__(self, dependencies=()):
        self.sent = []
        self.door = FrontDoor(TokencakeConfig(), lambda *e: self.sent.append(e), time.monotonic)
        self.door.request_begin(AgentTag(agent="coder"), "r")
        self.shown = self.door.snapshot
        self.app = FastAPI()

        async def status():
            return self.shown()

        self.app.include_router(create_router(self.door, status, dependencies))

    def request(self, method, path, **options):
        async def send():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, "/tokencake" + path, **options)

        return asyncio.run(send())

    def post(self, path, **options):
        return self.request("POST", path, **options)


@pytest.fixture
def bench():
    return Bench()


def error_of(response):
    body = response.json()
    assert body["ok"] is False
    return response.status_code, body["error"]["code"], body["error"]["message"]


def test_each_signal_has_a_path_of_its_own(bench):
    answers = [
        bench.post("/call_start", json=START),
        bench.post("/call_progress", json={"agent": "coder", "call_id": "c", "fraction": 0.5}),
        bench.post("/call_finish", json={"agent": "coder", "call_id": "c"}),
        bench.post("/agent_finish", json={"agent": "coder"}),
        bench.post("/application_finish", json={"application": "coder"}),
        bench.post("/application_start", json={"application": "coder", "graph": [{"name": "a"}]}),
    ]
    assert [answer.json() for answer in answers] == [
        {"ok": True, "sequence": 2, "repeat": False},
        {"ok": True, "sequence": 3, "repeat": False},
        {"ok": True, "sequence": 4, "repeat": False},
        {"ok": True, "sequence": 5, "repeat": False},
        {"ok": True, "sequence": 5, "repeat": True},  # its only agent has finished
        {"ok": True, "sequence": 6, "repeat": False},
    ]


def test_one_path_takes_every_signal_by_its_type(bench):
    assert bench.post("/signal", json=START | {"type": "call_start"}).status_code == 200


def test_a_type_that_contradicts_the_path_is_refused(bench):
    assert error_of(bench.post("/call_start", json=START | {"type": "call_finish"})) == (
        400,
        "invalid_message",
        "type: this path takes call_start, got 'call_finish'; leave the field out",
    )


@pytest.mark.parametrize("content", [b"", b"{", b'{"agent": "\xff"}', b"[" * 5000])
def test_a_body_that_is_no_json_is_a_typed_error(bench, content):
    status, code, message = error_of(bench.post("/call_start", content=content))
    assert (status, code) == (400, "invalid_message")
    assert message.startswith("body: expected a JSON object, got")


def test_a_body_that_is_no_object_is_a_typed_error(bench):
    assert error_of(bench.post("/call_start", json=[1])) == (
        400,
        "invalid_message",
        "expected an object, got list",
    )


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long_is_a_413(bench, chunked):
    text = b" " * (MAX_SIGNAL_BYTES + 1)

    async def parts():
        for start in range(0, len(text), 1000):
            yield text[start : start + 1000]

    response = bench.post("/signal", content=parts() if chunked else text)
    assert error_of(response)[:2] == (413, "message_too_long")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/call_start", START | {"agent": "nobody"}, 404, "unknown_agent"),
        ("/call_start", START | {"predicted": 1}, 400, "invalid_message"),
        ("/call_finish", {"agent": "coder", "call_id": "x"}, 404, "unknown_call"),
        ("/application_finish", {"application": "x"}, 404, "unknown_application"),
    ],
)
def test_a_refusal_has_its_status_and_code(bench, path, body, status, code):
    assert error_of(bench.post(path, json=body))[:2] == (status, code)


def test_a_contradiction_is_a_conflict(bench):
    bench.post("/call_start", json=START)
    answer = bench.post("/call_start", json=START | {"tool": "other"})
    assert error_of(answer)[:2] == (409, "contradiction")


def test_every_refusal_is_counted_once(bench):
    bench.post("/call_start", content=b"{")
    bench.post("/call_start", json={})
    bench.post("/call_start", json=START | {"agent": "nobody"})
    assert bench.door.snapshot()["signals"]["refused"] == {
        "invalid_message": 2,
        "unknown_agent": 1,
    }


def test_the_status_is_json(bench):
    body = bench.request("GET", "/status").json()
    assert body["agents"]["active"] == 1


def test_the_page_shows_the_status_escaped_and_needs_nothing_else(bench):
    bench.shown = lambda: {
        "version": "<b>",
        "agents": {"active": 3},
        "refusals": [{"message": "<script>alert(1)</script>"}, {"code": "x"}],
    }
    response = bench.request("GET", "/")
    assert response.headers["content-type"].startswith("text/html")
    assert "<script" not in response.text and "&lt;script&gt;" in response.text
    assert "<b>" not in response.text and "<td>3</td>" in response.text
    assert 'http-equiv="refresh"' in response.text
    assert "src=" not in response.text and "href=" not in response.text


def test_dependencies_guard_every_route():
    def nobody():
        raise HTTPException(403)

    bench = Bench([Depends(nobody)])
    routes = [("POST", "/call_start"), ("POST", "/signal"), ("GET", "/status"), ("GET", "/")]
    assert [bench.request(*route).status_code for route in routes] == [403] * 4
