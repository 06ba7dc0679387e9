"""Both clients over both transports against a real server."""

import asyncio
import inspect
import logging
import subprocess
import sys
import threading

import pytest

from tokencake_sglang import AsyncClient, Client, SignalError
from tokencake_sglang.agents.errors import AgentError
from tokencake_sglang.agents.events import CallProgress, GraphNode
from tokencake_sglang.agents.identity import parse_tag
from tokencake_sglang.signals.agent_handle import described
from tokencake_sglang.signals.tagging import find_tag

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


class Awaited:
    """An ``AsyncClient`` with the interface of ``Client``, so that one test covers both."""

    def __init__(self, *args, **options):
        self.runner = asyncio.Runner()
        self.client = AsyncClient(*args, **options)

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*args, **kwargs):
            async def run():
                return await method(*args, **kwargs)

            return self.runner.run(run())

        return call

    def close(self):
        self.runner.run(self.client.close())
        self.runner.close()


@pytest.fixture(params=["http", "zmq"])
def transport(request):
    return request.param


@pytest.fixture(params=[Client, Awaited], ids=["waiting", "awaiting"])
def connect(request, transport):
    """Makes a client of a server, closed at the end."""
    made = []

    def make(server, **options):
        made.append(request.param(getattr(server, transport), **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


def test_a_graph_arrives_with_the_times_that_are_known(server, connect):
    client = connect(server, strict=True)
    graph = {"plan": [], "code": ["plan"]}
    replies = [client.application_start("run", graph, {"code": 20.0}) for _ in range(2)]
    assert [reply.repeat for reply in replies] == [False, True]
    assert server.front_door.table.declared("run").graph == (
        GraphNode(name="plan"),
        GraphNode(name="code", after=("plan",), expected_s=20.0),
    )
    with pytest.raises(
        ValueError, match="'test' is none of the graph's nodes; they are plan, code"
    ):
        client.application_start("run", graph, {"test": 1.0})


def test_what_an_application_will_generate_arrives(server, connect):
    client = connect(server, strict=True)
    replies = [
        client.application_start("run", expected_output_tokens=tokens)
        for tokens in (9000, 9000, 8000)
    ]
    assert [reply.repeat for reply in replies] == [False, True, False]
    declared = server.front_door.table.declared("run")
    assert (declared.graph, declared.expected_output_tokens) == (None, 8000)


def test_signals_arrive_and_are_acknowledged(server, connect):
    server.know("coder", "run")
    client = connect(server, strict=True)
    replies = [
        client.call_start("coder", "c", "test", application="run", predicted_s=1.5),
        client.call_start("coder", "c", "test", application="run", predicted_s=1.5),
        client.call_finish("coder", "c", application="run"),
        client.agent_finish("coder", application="run"),
        client.application_finish("run"),
    ]
    assert [(reply.sequence, reply.repeat) for reply in replies] == [
        (3, False),
        (3, True),
        (4, False),
        (5, False),
        (5, True),
    ]
    assert server.sent[2][2].predicted_s == 1.5


def test_progress_arrives_in_each_of_its_three_ways(server, connect):
    server.know("coder")
    client = connect(server, strict=True)
    client.call_start("coder", "c", "rag", stages=["query", "embed"])
    assert server.sent[-1][2].stages == ("query", "embed")
    for way in ({"fraction": 0.25}, {"remaining_s": 1.5}, {"stage": "embed"}):
        assert not client.call_progress("coder", "c", **way).repeat
        assert server.sent[-1][2] == CallProgress(agent="coder", call_id="c", **way)
    assert client.call_progress("coder", "c", stage="query").repeat
    with pytest.raises(SignalError, match="fraction, remaining_s, stage: expected exactly one"):
        client.call_progress("coder", "c")
    with pytest.raises(SignalError, match="contradiction: stage: .* declared are query, embed"):
        client.call_progress("coder", "c", stage="rank")


def test_a_strict_client_raises_what_the_server_refused(server, connect):
    client = connect(server, strict=True)
    with pytest.raises(SignalError) as caught:
        client.call_start("nobody", "c", "test")
    assert caught.value.code == "unknown_agent"
    assert caught.value.message.startswith("agent: 'nobody' of application 'nobody'")


def test_a_lenient_client_warns_once_for_each_kind_of_failure(server, connect, caplog):
    caplog.set_level(logging.WARNING, logger="tokencake_sglang")
    server.know("coder")
    client = connect(server)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert client.call_start("nobody", "c", "test") is None
            assert client.call_finish("coder", "unknown") is None
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("tokencake")]
    assert [text.partition(":")[0] for text in warnings] == ["unknown_agent", "unknown_call"]


def test_an_absent_server_is_a_lost_signal_and_not_an_error(server, connect):
    server.stop()
    try:
        lenient, strict = (
            connect(server, timeout_s=0.3),
            connect(server, timeout_s=0.3, strict=True),
        )
        assert lenient.call_start("coder", "c", "test") is None
        with pytest.raises(SignalError) as caught:
            strict.call_start("coder", "c", "test")
        assert caught.value.code == "unreachable"
    finally:
        server.start()


def test_a_client_goes_on_after_the_server_restarts(server, connect):
    server.know("coder")
    client = connect(server, timeout_s=0.4)
    assert client.call_start("coder", "before", "test") is not None
    server.stop()
    assert client.call_start("coder", "lost", "test") is None
    server.start()
    server.know("coder")
    replies = [client.call_start("coder", f"after-{attempt}", "test") for attempt in range(5)]
    assert replies[-1] is not None and replies[-1].repeat is False
    lost = [e for _, _, e in server.sent if getattr(e, "call_id", None) == "lost"]
    assert lost == [], "a signal from before the restart was delivered after it"


def test_the_status_is_for_http_only(server, connect, transport):
    client = connect(server)
    if transport == "http":
        assert client.status()["agents"]["active"] == 0
        return
    with pytest.raises(SignalError, match="unsupported: status: needs an http:// target"):
        client.status()


def test_the_api_key_is_sent(locked_server):
    locked_server.know("coder")
    for key, accepted in (("secret", True), ("wrong", False), (None, False)):
        with Client(locked_server.zmq, api_key=key) as client:
            assert (client.call_start("coder", "c", "test") is not None) is accepted


def test_a_server_without_tokencake_is_told_from_a_refusal(server):
    with (
        Client(server.http + "/elsewhere", strict=True) as client,
        pytest.raises(SignalError, match="is the server running with TokenCake"),
    ):
        client.agent_finish("coder")


def test_many_threads_share_a_client(server, transport):
    server.know("coder")
    with Client(getattr(server, transport), strict=True) as client:

        def work(index):
            for turn in range(10):
                client.call_start("coder", f"{index}-{turn}", "test")
                client.call_finish("coder", f"{index}-{turn}")

        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.signals()) == 160


def test_many_tasks_share_a_client(server, transport):
    server.know("coder")

    async def main():
        async with AsyncClient(getattr(server, transport), strict=True) as client:
            agent = client.agent("coder")

            async def work():
                async with agent.tool_call("test"):
                    await asyncio.sleep(0.01)

            await asyncio.gather(*(work() for _ in range(40)))

    asyncio.run(main())
    assert len(server.signals()) == 80


def test_an_async_client_serves_one_event_loop_after_the_other(server, transport):
    server.know("coder")
    client = AsyncClient(getattr(server, transport), strict=True)

    async def one(call_id):
        return await client.call_start("coder", call_id, "test")

    assert asyncio.run(one("c1")).sequence == 3
    assert asyncio.run(one("c2")).sequence == 4


@pytest.mark.parametrize(
    "target", ["localhost:30000", "http://", "tcp://localhost", "tcp://localhost:70000", "ipc://"]
)
def test_an_unusable_target_says_what_is_accepted(target):
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="expected http://HOST:PORT, tcp://HOST:PORT or ipc"):
            kind(target)


def test_both_clients_have_the_same_methods():
    def public(kind):
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: list(inspect.signature(m).parameters) for name, m in methods if name[0] != "_"
        }

    assert public(Client) == public(AsyncClient)


# -- agents -----------------------------------------------------------------------------------


def test_a_tool_call_is_two_signals_around_the_block(server):
    server.know("coder", "run")
    with Client(server.http, strict=True) as client:
        agent = client.agent("coder", application="run")
        with agent.tool_call("test", predicted_s=2.0, arguments={"b": 1, "a": 2}) as call:
            start = server.sent[-1][2]
            assert (start.call_id, start.tool, start.predicted_s) == (call.call_id, "test", 2.0)
            assert described({"a": 2, "b": 1}) == {
                "arguments_digest": start.arguments_digest,
                "arguments_size": start.arguments_size,
            }
            assert start.arguments_size == len(b'{"a": 2, "b": 1}')
        agent.finish()
    assert server.signals() == [
        ("CallStart", "coder"),
        ("CallFinish", "coder"),
        ("AgentFinish", "coder"),
    ]


def test_a_running_tool_reports_how_far_it_is(server):
    server.know("coder", "run")

    async def awaiting():
        async with AsyncClient(server.zmq, strict=True) as client:
            coder = client.agent("coder", application="run")
            async with coder.tool_call("rag", stages=("query", "embed")) as call:
                await call.progress(fraction=0.5)
                await call.progress(remaining_s=3.0)
                await call.progress(stage="embed")
        return call.call_id

    def waiting():
        with Client(server.zmq, strict=True) as client:
            coder = client.agent("coder", application="run")
            with coder.tool_call("rag", stages=("query", "embed")) as call:
                call.progress(fraction=0.5)
                call.progress(remaining_s=3.0)
                call.progress(stage="embed")
        return call.call_id

    for run in (waiting, lambda: asyncio.run(awaiting())):
        call_id = run()
        start, *reports, _ = [event for _, _, event in server.sent][-5:]
        assert (start.call_id, start.stages) == (call_id, ("query", "embed"))
        assert {(event.application, event.call_id) for event in reports} == {("run", call_id)}
        assert [(e.fraction, e.remaining_s, e.stage) for e in reports] == [
            (0.5, None, None),
            (None, 3.0, None),
            (None, None, "embed"),
        ]


def test_a_tool_that_fails_finishes_its_call_and_keeps_its_error(server):
    server.know("coder")

    async def awaiting():
        async with (
            AsyncClient(server.zmq, strict=True) as client,
            client.agent("coder").tool_call("test"),
        ):
            raise KeyError("mine")

    def waiting():
        with Client(server.zmq, strict=True) as client, client.agent("coder").tool_call("test"):
            raise KeyError("mine")

    for run in (waiting, lambda: asyncio.run(awaiting())):
        with pytest.raises(KeyError, match="mine"):
            run()
    assert [kind for kind, _ in server.signals()] == ["CallStart", "CallFinish"] * 2


def test_the_tools_own_error_is_seen_even_if_the_finish_is_lost(server):
    server.know("coder")
    with (
        pytest.raises(KeyError, match="mine"),
        Client(server.http, strict=True) as client,
        client.agent("coder").tool_call("test") as call,
    ):
        client.call_finish("coder", call.call_id)
        client._transport._format.target += "/elsewhere"
        raise KeyError("mine")


def test_a_lost_start_does_not_keep_the_tool_from_running(server):
    ran = []
    with Client(server.http) as client, client.agent("nobody").tool_call("test"):
        ran.append(True)
    assert ran == [True]


def test_a_handle_offers_the_tag_in_every_form():
    with Client("http://127.0.0.1:1") as client:
        agent = client.agent("coder", application="run", agent_type="writer", critical=True)
    tag = {"agent": "coder", "application": "run", "agent_type": "writer", "critical": True}
    assert agent.tag == tag
    assert agent.custom_params == {"tokencake": tag}
    assert agent.extra_body == {"custom_params": {"tokencake": tag}}
    assert find_tag(agent.custom_params, None, None) == parse_tag(tag)
    assert find_tag(None, agent.headers, None) == parse_tag(tag)


def test_a_name_that_headers_cannot_carry_says_what_can():
    with Client("http://127.0.0.1:1") as client:
        agent = client.agent("程序员")
    with pytest.raises(AgentError, match="x-tokencake-agent: expected printable ASCII"):
        agent.headers  # noqa: B018
    assert agent.tag["agent"] == "程序员"


def test_a_name_that_cannot_be_one_is_refused_at_once():
    with (
        Client("http://127.0.0.1:1") as client,
        pytest.raises(AgentError, match="agent.agent: Exp"),
    ):
        client.agent("")


@pytest.mark.parametrize("target", ["http://127.0.0.1:1", "tcp://127.0.0.1:1"])
def test_the_client_needs_neither_sglang_nor_torch(target):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['sglang', 'torch', 'fastapi', 'numpy']))\n"
        "from tokencake_sglang import Client\n"
        f"Client({target!r}, timeout_s=0.1).agent('a').finish()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_none_of_its_parts():
    code = (
        "import sys, tokencake_sglang\n"
        "loaded = [name for name in sys.modules if name.startswith('tokencake_sglang.')]\n"
        "assert not loaded and 'msgspec' not in sys.modules, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
