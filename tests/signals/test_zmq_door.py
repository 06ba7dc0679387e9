"""The ZeroMQ door over a real loopback socket, with raw sockets as clients."""

import asyncio
import contextlib
import random

import msgspec
import pytest
import zmq

from tokencake_sglang.agents.events import MAX_SIGNAL_BYTES
from tokencake_sglang.config import ConfigError
from tokencake_sglang.signals.zmq_door import MAX_FRAME_BYTES, ZmqDoor, default_endpoint

START = {"type": "call_start", "agent": "coder", "call_id": "c", "tool": "test"}


@contextlib.contextmanager
def connected(server, kind):
    context = zmq.Context()
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(server.zmq)
    try:
        yield socket
    finally:
        socket.close()
        context.term()


@pytest.fixture
def dealer(server):
    server.know("coder")
    with connected(server, zmq.DEALER) as socket:
        yield socket


def receive(socket):
    assert socket.poll(5000), "no reply"
    return msgspec.msgpack.decode(socket.recv())


def ask(socket, message):
    socket.send(message if isinstance(message, bytes) else msgspec.msgpack.encode(message))
    return receive(socket)


def refusal(socket, message):
    reply = ask(socket, message)
    assert reply["ok"] is False
    return reply["error"]["code"], reply["error"]["message"]


def test_a_dealer_gets_its_request_id_back(dealer):
    assert ask(dealer, START | {"request": "id-1"}) == {
        "ok": True,
        "sequence": 3,
        "repeat": False,
        "request": "id-1",
    }


def test_a_req_socket_is_answered(server):
    server.know("coder")
    with connected(server, zmq.REQ) as socket:
        assert ask(socket, START)["ok"] is True
        assert ask(socket, START)["repeat"] is True


def test_pipelined_signals_are_answered_in_order(dealer):
    for index in range(500):
        dealer.send(msgspec.msgpack.encode({"type": "nonsense", "request": index}))
    assert [receive(dealer)["request"] for _ in range(500)] == list(range(500))


def test_a_contradiction_names_what_was_known(dealer):
    ask(dealer, START)
    code, message = refusal(dealer, START | {"tool": "other"})
    assert code == "contradiction" and message.startswith("call_id: 'c' was already started")


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (b"", "invalid_message", "expected a msgpack map: "),
        (b"\xc1", "invalid_message", "expected a msgpack map: "),
        (b"\x91" * 9000, "invalid_message", "expected a msgpack map: "),
        (b"\xa2\xff\xfe", "invalid_message", "expected a msgpack map: "),
        (b"\x81\x81\x01\x02\x03", "invalid_message", "expected a msgpack map: "),
        (b"\x93\x01\x02\x03", "invalid_message", "expected a msgpack map, got list"),
        (b"\x81\x01\x02", "invalid_message", "type: expected one of"),
        (b'{"type": "call_start"}', "invalid_message", "expected a msgpack map"),
        (b"x" * (MAX_SIGNAL_BYTES + 1), "message_too_long", "expected at most 16384 bytes, got"),
        ({}, "invalid_message", "type: expected one of"),
        (START | {7: 8}, "invalid_message", "7: unknown field of call_start"),
        (START | {"agnet": "x"}, "invalid_message", "agnet: unknown field of call_start"),
        (START | {"predicted_s": float("nan")}, "invalid_message", "predicted_s: "),
        (START | {"request": 1.5}, "invalid_message", "request: expected an integer or a text"),
        (START | {"request": "x" * 300}, "invalid_message", "request: expected an integer or"),
        (START | {"agent": "nobody"}, "unknown_agent", "agent: 'nobody' of application"),
    ],
)
def test_a_bad_message_is_a_typed_error_and_the_door_stays_open(dealer, message, code, text):
    given, answer = refusal(dealer, message)
    assert given == code and answer.startswith(text)
    assert ask(dealer, START)["ok"] is True


@pytest.mark.parametrize("frames", [[b""], [b"a", b"b"], [b"", b"a", b"b"], [b"", b""]])
def test_a_message_of_the_wrong_shape_is_a_typed_error(dealer, frames):
    dealer.send_multipart(frames)
    assert dealer.poll(5000)
    reply = msgspec.msgpack.decode(dealer.recv_multipart()[-1])
    assert reply["error"]["code"] == "invalid_message"


def test_a_frame_far_too_long_ends_that_connection_only(server, dealer):
    with connected(server, zmq.DEALER) as other:
        other.send(b"x" * (MAX_FRAME_BYTES + 1))
        assert not other.poll(200)
    assert ask(dealer, START)["ok"] is True


def test_random_bytes_never_close_the_door(dealer):
    source = random.Random(7)
    for _ in range(300):
        message = msgspec.msgpack.encode(START | {"request": source.random()})
        at = source.randrange(len(message))
        dealer.send(message[:at] + source.randbytes(source.randrange(4)) + message[at + 1 :])
    for _ in range(300):
        receive(dealer)
    assert ask(dealer, START | {"call_id": "last"})["ok"] is True


@pytest.mark.parametrize(
    "given", [{}, {"api_key": "wrong"}, {"api_key": 7}, {"api_key": "schlüssel"}]
)
def test_without_the_api_key_nothing_is_accepted(locked_server, given):
    locked_server.know("coder")
    with connected(locked_server, zmq.DEALER) as socket:
        assert refusal(socket, START | given)[0] == "unauthorized"
        assert ask(socket, START | {"api_key": "secret"})["ok"] is True


def test_the_reply_does_not_repeat_the_api_key(locked_server):
    with connected(locked_server, zmq.DEALER) as socket:
        _, message = refusal(socket, {"api_key": "secret", "type": "call_start", "bad": 1})
        assert "secret" not in message and "bad: unknown field" in message


def test_an_endpoint_that_is_taken_is_a_configuration_error(server):
    async def start_second():
        ZmqDoor(server.front_door, server.zmq).start()

    with pytest.raises(ConfigError) as caught:
        asyncio.run(start_second())
    assert str(caught.value) == (
        f"--tokencake-zmq-endpoint: cannot listen on '{server.zmq}': Address already in use; "
        "accepted are tcp://HOST:PORT, ipc://PATH or off"
    )


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://", "udp://127.0.0.1:5"])
def test_an_endpoint_that_is_none_is_a_configuration_error(endpoint):
    async def start():
        ZmqDoor(None, endpoint).start()

    with pytest.raises(ConfigError, match="--tokencake-zmq-endpoint: cannot listen on"):
        asyncio.run(start())


def test_a_door_can_be_stopped_twice_and_before_it_started(tmp_path):
    async def run():
        door = ZmqDoor(None, f"ipc://{tmp_path}/door")
        await door.stop()
        door.start()
        await door.stop()
        await door.stop()

    asyncio.run(run())


@pytest.mark.parametrize(("port", "expected"), [(30000, 31000), (64535, 65535), (64536, 55536)])
def test_the_default_endpoint_is_loopback_beside_the_http_port(port, expected):
    assert default_endpoint(port) == f"tcp://127.0.0.1:{expected}"
