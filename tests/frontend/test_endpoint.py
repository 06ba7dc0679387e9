"""The frontend language's backend against a local stand-in for the server."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

sgl = pytest.importorskip("sglang")

from tokencake_sglang.frontend.agents import current_agent, running_as
from tokencake_sglang.frontend.endpoint import TokencakeEndpoint, agent, run_as, tool_call


class Peer(ThreadingHTTPServer):
    """Records what it is sent, in order, and answers as /generate does."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.received = []
        self.lock = threading.Lock()

    def bodies(self, path="/generate"):
        return [body for at, body in self.received if at == path]

    def agents(self):
        """For each /generate request, the agent in its tag."""
        params = [body["sampling_params"].get("custom_params") for body in self.bodies()]
        return [None if p is None else p["tokencake"]["agent"] for p in params]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer({"model_path": "tiny"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.received.append((self.path, body))
        if self.path == "/tokencake/signal":
            return self.answer({"ok": True, "sequence": 1, "repeat": False})
        meta = {"prompt_tokens": 12, "cached_tokens": 8, "completion_tokens": 1}
        if body.get("return_logprob"):
            meta |= {
                "input_token_logprobs": [[-1.0, 1, "a"], [-2.0, 2, "b"]],
                "output_token_logprobs": [],
            }
        answer = {"text": "out", "meta_info": meta}
        if isinstance(body.get("text"), list):
            return self.answer([answer] * len(body["text"]))
        if body.get("stream"):
            return self.stream([{"text": text, "meta_info": meta} for text in ("o", "out")])
        self.answer(answer)

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, values):
        lines = [f"data: {json.dumps(value)}\n\n" for value in values] + ["data: [DONE]\n\n"]
        data = "".join(lines).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def peer():
    server = Peer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def endpoint(peer):
    return TokencakeEndpoint(peer.url, chat_template_name="chatml")


@sgl.function
def one_turn(s, task):
    s += task
    s += sgl.gen("answer", max_tokens=4)


@sgl.function
def two_turns(s, task):
    s += task
    s += sgl.gen("answer", max_tokens=4)
    with tool_call(s, "pytest", predicted_s=2.5, arguments={"k": 1}):
        result = "passed"
    s += result
    s += sgl.gen("verdict", max_tokens=4)


@sgl.function
def forked(s, task):
    s += task
    s.sync()  # SGLang prefills the common prefix only if its text is there already
    branches = s.fork(3)
    branches += sgl.gen("idea", max_tokens=4)
    with tool_call(branches[1], "search"):
        pass
    branches.join()
    s += sgl.gen("answer", max_tokens=4)


def test_a_generation_carries_the_whole_tag_of_its_agent(peer, endpoint):
    with agent(endpoint, "coder", application="run-7", agent_type="writer", critical=True):
        state = one_turn.run("hello", backend=endpoint)
        assert state["answer"] == "out"
    (body,) = peer.bodies()
    assert body["sampling_params"]["custom_params"] == {
        "tokencake": {
            "agent": "coder",
            "application": "run-7",
            "agent_type": "writer",
            "critical": True,
        }
    }
    assert body["sampling_params"]["max_new_tokens"] == 4


def test_a_program_outside_any_agent_sends_what_the_stock_endpoint_sends(peer, endpoint):
    stock = sgl.RuntimeEndpoint(peer.url, chat_template_name="chatml")
    for backend in (endpoint, stock):
        one_turn.run("hello", backend=backend).sync()
    ours, theirs = peer.bodies()
    assert ours == theirs


def test_a_streamed_generation_is_tagged_and_reports_its_time_to_first_token(peer):
    responses = []
    endpoint = TokencakeEndpoint(
        peer.url, chat_template_name="chatml", on_response=responses.append
    )
    with endpoint.agent("coder"):
        state = one_turn.run("hello", backend=endpoint, stream=True)
    assert "".join(state.text_iter()).endswith("out")
    assert peer.agents() == ["coder"]
    (response,) = responses
    assert 0.0 < response.ttft_s <= response.duration_s
    assert (response.agent.name, response.cached_tokens, response.prompt_tokens) == ("coder", 8, 12)


def test_every_request_of_a_select_is_tagged(peer, endpoint):
    @sgl.function
    def choose(s):
        s += "which?" + sgl.select("choice", choices=["a", "b"])

    with endpoint.agent("coder"):
        assert choose.run(backend=endpoint)["choice"] in ("a", "b")
    assert peer.agents() == ["coder", "coder"]


def test_a_dtype_still_becomes_a_regex(peer, endpoint):
    @sgl.function
    def number(s):
        s += "how many? " + sgl.gen_int("count", max_tokens=2)

    with endpoint.agent("coder"):
        number.run(backend=endpoint).sync()
    assert peer.bodies()[0]["sampling_params"]["regex"] is not None


def test_a_tool_call_is_signalled_after_the_generation_and_before_the_next_one(peer, endpoint):
    with endpoint.agent("coder", application="run-7"):
        two_turns.run("hello", backend=endpoint).sync()
    paths = [path for path, _ in peer.received]
    assert paths == ["/generate", "/tokencake/signal", "/tokencake/signal", "/generate"]
    start, finish = peer.bodies("/tokencake/signal")
    assert (start["type"], finish["type"]) == ("call_start", "call_finish")
    assert start["call_id"] == finish["call_id"]
    assert (start["tool"], start["predicted_s"]) == ("pytest", 2.5)
    assert start["application"] == "run-7" and len(start["arguments_digest"]) == 32
    assert start["arguments_size"] > 0


@sgl.function
def reporting(s, task):
    s += task
    s += sgl.gen("answer", max_tokens=4)
    with tool_call(s, "rag", stages=("query", "embed")) as call:
        call.progress(stage="embed")
    s += sgl.gen("verdict", max_tokens=4)


def test_a_tool_call_reports_how_far_it_is(peer, endpoint):
    with endpoint.agent("coder", application="run-7"):
        reporting.run("hello", backend=endpoint).sync()
    start, report, finish = peer.bodies("/tokencake/signal")
    assert start["stages"] == ["query", "embed"]
    who = {"agent": "coder", "application": "run-7", "call_id": start["call_id"]}
    assert report == {"type": "call_progress", **who, "stage": "embed"}
    assert finish == {"type": "call_finish", **who}


def test_a_reporting_tool_call_of_nobody_sends_nothing(peer, endpoint):
    assert reporting.run("hello", backend=endpoint)["verdict"] == "out"
    assert peer.bodies("/tokencake/signal") == []


def test_a_tool_call_of_nobody_sends_nothing(peer, endpoint):
    two_turns.run("hello", backend=endpoint).sync()
    assert peer.bodies("/tokencake/signal") == []


@pytest.mark.parametrize("stream", [False, True])
def test_branches_are_agents_of_their_own_in_the_order_of_the_fork(peer, endpoint, stream):
    with endpoint.agent("coder") as coder:
        state = forked.run("hello", backend=endpoint, stream=stream)
        state.get_var("answer") if not stream else list(state.text_iter())
    sent = peer.agents()
    assert sent[0] == "coder"  # the common prefix, before the fork
    assert sorted(sent[1:4]) == ["coder/0", "coder/1", "coder/2"]
    assert sent[4] == "coder"
    tags = [body["sampling_params"]["custom_params"]["tokencake"] for body in peer.bodies()]
    assert {tag.get("application", tag["agent"]) for tag in tags} == {coder.application}


def test_a_joined_branch_is_finished_and_the_agent_itself_is_not(peer, endpoint):
    with endpoint.agent("coder"):
        forked.run("hello", backend=endpoint).sync()
    signals = [(s["type"], s["agent"]) for s in peer.bodies("/tokencake/signal")]
    assert signals[:2] == [("call_start", "coder/1"), ("call_finish", "coder/1")]
    assert sorted(signals[2:]) == [("agent_finish", f"coder/{index}") for index in range(3)]


def test_a_second_fork_does_not_reuse_the_names_of_the_first(peer, endpoint):
    @sgl.function
    def twice(s):
        s += "task"
        for _ in range(2):
            branches = s.fork(2)
            branches += sgl.gen("idea", max_tokens=4)
            branches.join()

    with endpoint.agent("coder"):
        twice.run(backend=endpoint).sync()
    names = {name for name in peer.agents() if name != "coder"}
    assert names == {"coder/0", "coder/1", "coder/2", "coder/3"}


def test_a_fork_of_a_branch_is_named_after_the_branch(peer, endpoint):
    @sgl.function
    def nested(s):
        s += "task"
        with s.copy() as branch, branch.copy() as leaf:
            leaf += sgl.gen("idea", max_tokens=4)
            leaf.sync()

    with endpoint.agent("coder"):
        nested.run(backend=endpoint).sync()
    assert peer.agents() == ["coder/0/0"]


def test_a_branch_that_sent_nothing_is_not_finished(peer, endpoint):
    @sgl.function
    def idle(s):
        s.fork(1).join()

    with endpoint.agent("coder"):
        idle.run(backend=endpoint).sync()
    assert peer.received == []


def test_run_as_tags_one_run_and_passes_the_arguments_on(peer, endpoint):
    state = run_as(endpoint, "coder", one_turn, "hello", application="run-7", temperature=0.5)
    state.sync()
    params = peer.bodies()[0]["sampling_params"]
    assert params["custom_params"]["tokencake"]["application"] == "run-7"
    assert params["temperature"] == 0.5
    assert current_agent() is None


def test_agents_in_threads_do_not_mix(peer, endpoint):
    def work(name):
        run_as(endpoint, name, two_turns, f"task of {name}", application="run-7").sync()

    threads = [threading.Thread(target=work, args=(f"agent-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for body in peer.bodies():
        name = body["sampling_params"]["custom_params"]["tokencake"]["agent"]
        assert body["text"].startswith(f"task of {name}")


def test_leaving_an_agent_brings_the_outer_one_back(endpoint):
    with endpoint.agent("outer") as outer:
        with endpoint.agent("inner"):
            assert current_agent().name == "inner"
        assert current_agent() is outer
        with running_as(outer):
            assert current_agent() is outer
    assert current_agent() is None


def test_a_server_without_tokencake_costs_one_warning_and_no_error(peer, endpoint, caplog):
    # A scheduler built earlier in this process leaves the root logger at another level.
    caplog.set_level(logging.WARNING, logger="tokencake_sglang")
    endpoint.signals._transport._format.target += "/elsewhere"
    with endpoint.agent("coder"):
        state = two_turns.run("hello", backend=endpoint)
    assert state["verdict"] == "out"
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("tokencake")]
    assert len(warnings) == 1, warnings
