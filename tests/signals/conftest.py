"""A real server: uvicorn and the ZeroMQ door around a front door, on an event loop in a thread."""

import asyncio
import contextlib
import random
import socket
import threading
import time

import pytest
import uvicorn
from fastapi import FastAPI

from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.signals.front_door import FrontDoor
from tokencake_sglang.signals.http import create_router
from tokencake_sglang.signals.zmq_door import ZmqDoor


def free_ports(count):
    """Free ports below those that the kernel gives to outgoing connections."""
    ports = []
    for port in random.sample(range(20_000, 32_000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            break
    return ports


class Server:
    """``sent``: what reached the scheduler. Can be stopped and started again on the same ports."""

    def __init__(self, api_key=None):
        http_port, zmq_port = free_ports(2)
        self.http = f"http://127.0.0.1:{http_port}"
        self.zmq = f"tcp://127.0.0.1:{zmq_port}"
        self.api_key = api_key
        self.start()

    def start(self):
        self.front_door = FrontDoor.__new__(FrontDoor)
        self.forget()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _run(self):
        app = FastAPI()
        app.include_router(create_router(self.front_door, self._status))
        port = int(self.http.rpartition(":")[2])
        config = uvicorn.Config(app, port=port, log_level="error", lifespan="off")
        uvicorn_server = uvicorn.Server(config)
        door = ZmqDoor(self.front_door, self.zmq, self.api_key)
        door.start()
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        serving = asyncio.create_task(uvicorn_server.serve())
        while not uvicorn_server.started:
            await asyncio.sleep(0.005)
        self._ready.set()
        await self._stop.wait()
        uvicorn_server.should_exit = uvicorn_server.force_exit = True
        await serving
        await door.stop()

    async def _status(self):
        return self.front_door.snapshot()

    def stop(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def forget(self):
        """Starts over in place, while nobody uses it: starting a server takes long."""
        self.sent = []
        self.front_door.__init__(
            TokencakeConfig(), lambda *event: self.sent.append(event), time.monotonic
        )

    def know(self, agent, application=None):
        """The agent has sent a request and got its answer."""
        done = threading.Event()

        def request():
            self.front_door.request_begin(AgentTag(agent=agent, application=application), "r")
            self.front_door.request_end("r")
            done.set()

        self._loop.call_soon_threadsafe(request)
        assert done.wait(5)

    def signals(self):
        """The signals that reached the scheduler, as (type, agent)."""
        return [
            (type(event).__name__, event.agent)
            for _, _, event in self.sent
            if hasattr(event, "agent")
        ]


@pytest.fixture(scope="session")
def _server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _locked_server():
    server = Server(api_key="secret")
    yield server
    server.stop()


@pytest.fixture
def server(_server):
    _server.forget()
    return _server


@pytest.fixture
def locked_server(_locked_server):
    _locked_server.forget()
    return _locked_server
