"""What a server saw, as a workload: who waited for whom, and what is shared."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake_sglang.agents.events import AgentFinish, ApplicationFinish, CallFinish, CallStart
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.recorder import Recorder
from tokencake_sglang.replay.tokens import common_prefix, length
from tokencake_sglang.replay.workload import Header, Request, Workload

BLOCK = 4
HEADER = Header(name="test", source="a test", licence="Apache-2.0", block_size=BLOCK)


class Recording:
    """A recorder, and a server whose tokens are given."""

    def __init__(self, **options):
        self.lines = []
        self.recorder = Recorder(
            self.lines.append, block_size=BLOCK, key=options.pop("key", b"key"), **options
        )
        self._rids = itertools.count()

    def begin(self, at_s, agent=None, prompt=range(8), application="app", **tag):
        rid = str(next(self._rids))
        who = AgentTag(agent=agent, application=application, **tag) if agent else None
        self.recorder.begin(rid, who, list(prompt), at_s)
        return rid

    def end(self, rid, at_s, output=(90, 91, 92, 93)):
        self.recorder.end(rid, output if isinstance(output, int) else list(output), at_s)

    def turn(self, agent, began_s, ended_s, prompt=range(8), output=(90, 91, 92, 93), **tag):
        self.end(self.begin(began_s, agent, prompt, **tag), ended_s, output)

    def call(
        self,
        agent,
        started_s,
        finished_s,
        tool="search",
        predicted_s=None,
        call_id="1",
        application="app",
    ):
        who = {"agent": agent, "application": application, "call_id": call_id}
        self.recorder.signal(CallStart(**who, tool=tool, predicted_s=predicted_s), started_s)
        if finished_s is not None:
            self.recorder.signal(CallFinish(**who), finished_s)

    def finish(self, at_s, agent=None):
        signal = AgentFinish(agent=agent, application="app") if agent else None
        self.recorder.signal(signal or ApplicationFinish(application="app"), at_s)

    @property
    def requests(self) -> list[Request]:
        lines = b"".join(self.lines).splitlines()
        return [msgspec.json.decode(line, type=Request) for line in lines]

    def workload(self, at_s=1000.0) -> Workload:
        self.recorder.close(at_s)
        return Workload(HEADER, self.requests)


def replayed(workload: Workload, server: dict[str, float]) -> dict[str, float]:
    """When requests are dispatched on a server that takes as long as the recorded one did."""
    return schedule(workload, lambda request: server[request.request_id]).dispatched_s


# -- who waits for whom -----------------------------------------------------------------------


def test_an_agents_next_request_waits_for_its_call_and_the_pause_after_it():
    recording = Recording()
    recording.turn("a", 10.0, 11.0)
    recording.call("a", 11.1, 15.0, "pytest", predicted_s=3.0)
    recording.turn("a", 15.5, 16.0, prompt=range(50, 70))
    first, second = recording.workload().requests
    assert (first.arrival_s, first.call.tool) == (0.0, "pytest")
    assert (first.call.wait_s, first.call.declared_s) == (4.0, 3.0)
    assert (second.wait_for, second.delay_s) == ((first.request_id,), 0.5)


def test_what_a_tag_says_is_recorded():
    recording = Recording()
    recording.turn("a", 0, 1, agent_type="coder", critical=True, tenant="blue")
    (request,) = recording.workload().requests
    assert (request.application, request.agent) == ("app", "a")
    assert (request.agent_type, request.critical, request.tenant) == ("coder", True, "blue")


def test_untagged_requests_arrive_when_they_did_and_are_written_at_once():
    recording = Recording()
    recording.turn(None, 5, 6)
    recording.turn(None, 7, 8)
    assert [request.arrival_s for request in recording.requests] == [0, 2]
    assert all(request.application is None for request in recording.requests)


def test_a_request_that_begins_with_anothers_prompt_and_output_waits_for_it():
    recording = Recording()
    recording.turn("planner", 0, 1, prompt=range(8), output=range(20, 28))
    recording.turn("other", 0, 5, prompt=range(100, 108))
    recording.turn("writer", 6, 7, prompt=[*range(8), *range(20, 28), 77, 78])
    planner, _, writer = sorted(recording.workload().requests, key=lambda r: r.request_id)
    assert planner.request_id in writer.wait_for
    assert writer.arrival_s is None


def test_a_fan_out_waits_for_its_source_and_a_join_for_all_branches():
    recording = Recording()
    recording.turn("planner", 0, 1)
    branches = [recording.begin(1.1, f"worker{index}") for index in range(3)]
    for index, rid in enumerate(branches):
        recording.end(rid, 2.0 + index)
    recording.turn("reviewer", 5, 6)
    requests = {request.agent: request for request in recording.workload().requests}
    planner = requests["planner"].request_id
    workers = [requests[f"worker{index}"] for index in range(3)]
    assert [worker.wait_for for worker in workers] == [(planner,)] * 3
    assert set(requests["reviewer"].wait_for) == {worker.request_id for worker in workers}
    assert requests["reviewer"].delay_s == 1.0


def test_an_agent_that_resumes_waits_for_what_ran_meanwhile_without_a_call():
    recording = Recording()
    recording.turn("main", 0, 1)
    recording.turn("helper", 2, 5)
    recording.turn("main", 6, 7)
    first, helper, second = sorted(recording.workload().requests, key=lambda r: r.request_id)
    assert set(second.wait_for) == {first.request_id, helper.request_id}
    assert second.delay_s == 1.0


def test_a_request_that_starts_during_another_agents_call_belongs_to_the_call():
    recording = Recording()
    recording.turn("main", 0, 1)
    recording.call("main", 1, None, "task")
    recording.turn("sub", 1.5, 3)
    recording.call("sub", 3, 4, call_id="2")
    recording.turn("sub", 4, 6)
    recording.recorder.signal(CallFinish(agent="main", application="app", call_id="1"), 7.0)
    recording.turn("main", 7.5, 8)
    main, sub, sub_again, resumed = sorted(
        recording.workload().requests, key=lambda r: r.request_id
    )
    assert (sub.spawned_by, sub.delay_s, sub.wait_for) == (main.request_id, 0.5, ())
    assert sub_again.wait_for == (sub.request_id,)
    assert (main.call.until, main.call.wait_s) == ((sub_again.request_id,), 1.0)
    assert resumed.wait_for == (main.request_id,)


def test_a_replay_on_an_equal_server_sends_every_request_when_it_was_sent():
    recording = Recording()
    recording.turn("main", 100, 101)
    recording.call("main", 101, None, "task")
    recording.turn("sub", 101.5, 103)
    recording.recorder.signal(CallFinish(agent="main", application="app", call_id="1"), 104.0)
    recording.turn("main", 104.5, 106)
    recording.turn("writer", 106.25, 107)
    recording.turn(None, 107, 108)
    workload = recording.workload()
    took = {"r0": 1.0, "r1": 1.5, "r2": 1.5, "r3": 0.75, "r4": 1.0}
    assert replayed(workload, took) == pytest.approx(
        {"r0": 0, "r1": 1.5, "r2": 4.5, "r3": 6.25, "r4": 7}
    )


def test_calls_one_after_the_other_are_one_call():
    recording = Recording()
    recording.turn("a", 0, 1)
    recording.call("a", 1, 2, "grep", 1.0, "1")
    recording.call("a", 2, 6, "pytest", 3.0, "2")
    recording.turn("a", 6, 7)
    first = recording.workload().requests[0]
    assert (first.call.tool, first.call.wait_s, first.call.declared_s) == ("pytest", 5.0, 4.0)


def test_a_call_whose_finish_is_lost_ends_with_the_agents_next_request():
    recording = Recording()
    recording.turn("a", 0, 1)
    recording.call("a", 1, None)
    recording.turn("a", 4, 5)
    assert recording.workload().requests[0].call.wait_s == 3.0


def test_a_finish_that_comes_after_the_next_request_changes_nothing():
    recording = Recording()
    recording.turn("a", 0, 1)
    recording.call("a", 1, None)
    rid = recording.begin(4, "a")
    recording.recorder.signal(CallFinish(agent="a", application="app", call_id="1"), 4.5)
    recording.end(rid, 5)
    assert recording.workload().requests[0].call.wait_s == 3.0


def test_a_call_after_the_last_request_is_kept():
    recording = Recording()
    recording.turn("a", 0, 1)
    recording.call("a", 1, 3)
    recording.finish(4)
    assert recording.requests[0].call.wait_s == 2.0


def test_a_second_run_of_an_application_has_a_name_of_its_own():
    recording = Recording()
    recording.turn("a", 0, 1)
    recording.finish(2)
    recording.turn("a", 10, 11)
    first, second = recording.workload().requests
    assert (first.application, second.application) == ("app", "app~2")
    assert (second.arrival_s, second.wait_for) == (10.0, ())


# -- what is left out -------------------------------------------------------------------------


def test_aborted_requests_are_counted_and_nothing_waits_for_them():
    recording = Recording()
    recording.turn("a", 0, 1)
    recording.recorder.fail(recording.begin(2, "a"), 3)
    recording.turn("a", 4, 5)
    first, retried = recording.workload().requests
    assert (retried.wait_for, retried.delay_s) == ((first.request_id,), 3.0)
    assert recording.recorder.counts["aborted"] == 1


def test_a_branch_that_fails_does_not_hide_its_source_from_the_next():
    recording = Recording()
    recording.turn("planner", 0, 1)
    recording.recorder.fail(recording.begin(2, "broken"), 3)
    recording.turn("slow", 1, 4)
    recording.turn("next", 5, 6)
    requests = {request.agent: request for request in recording.workload().requests}
    assert requests["slow"].request_id in requests["next"].wait_for
    assert requests["planner"].request_id in requests["slow"].wait_for


def test_a_request_without_output_is_left_out():
    recording = Recording()
    recording.turn(None, 0, 1, output=())
    assert recording.requests == [] and recording.recorder.counts["empty"] == 1


def test_an_output_of_which_only_the_length_is_known_is_shared_with_nothing():
    recording = Recording()
    recording.turn(None, 0, 1, output=7)
    recording.turn(None, 2, 3, output=7)
    first, second = recording.requests
    assert first.output_length == 7 and first.output != second.output
    assert common_prefix(first.prompt, second.prompt) == 8
    assert recording.recorder.counts["output_unknown"] == 2


def test_what_still_runs_at_the_end_is_left_out():
    recording = Recording()
    recording.begin(0, "a")
    assert recording.workload().requests == ()
    assert recording.recorder.counts["unfinished"] == 1


# -- lines as they come -----------------------------------------------------------------------


def test_a_line_is_written_as_soon_as_nothing_can_be_added_to_it():
    recording = Recording()
    recording.turn("a", 0, 1)
    assert recording.requests == [], "a call can still follow"
    rid = recording.begin(2, "a")
    assert len(recording.requests) == 1
    recording.end(rid, 3)
    recording.finish(4, agent="a")
    assert len(recording.requests) == 2


def test_a_silent_application_has_finished():
    recording = Recording(agent_timeout_s=60.0)
    recording.turn("a", 0, 1)
    recording.turn(None, 30, 31)
    assert len(recording.requests) == 1
    recording.turn(None, 100, 101)
    assert {request.agent for request in recording.requests} == {"a", None}


def test_an_application_with_a_long_request_is_not_silent():
    recording = Recording(agent_timeout_s=60.0)
    recording.turn("a", 0, 1)
    rid = recording.begin(2, "a")
    recording.turn(None, 300, 301)
    recording.end(rid, 302)
    recording.turn("a", 303, 304)
    third = recording.workload().requests[-1]
    assert third.application == "app" and third.wait_for


def test_held_lines_are_bounded_by_their_blocks():
    recording = Recording(held_blocks=20)
    for index in range(50):
        recording.turn("a", index, index + 0.5, application=f"app{index}")
        recording.call("a", index + 0.6, None, application=f"app{index}")
    assert len(recording.requests) >= 50 - 20 // 3
    assert recording.recorder.counts["cut_short"] == len(recording.requests)
    assert len(recording.workload().requests) == 50


def test_agents_are_bounded():
    recording = Recording(held_agents=10)
    for index in range(50):
        recording.turn("a", index, index + 0.5, application=f"app{index}")
    assert len(recording.requests) >= 38
    assert len(recording.workload().requests) == 50


def test_a_long_line_of_waiting_requests_is_no_problem():
    recording = Recording()
    recording.turn("main", 0, 1)
    recording.call("main", 1, None, "task")
    for index in range(2000):
        recording.turn("sub", 2 + index, 2.5 + index, prompt=[index])
    assert recording.requests == []
    recording.finish(3000)
    assert len(recording.requests) == 2001


# -- anything at all --------------------------------------------------------------------------

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=14)
STEP = st.tuples(
    st.sampled_from(["begin", "begin", "end", "end", "fail", "call", "return", "finish", "close"]),
    st.sampled_from(["a", "b", "c", None]),
    st.integers(0, 3),
    TOKENS,
    TOKENS,
)


def drive(steps, **options):
    """Plays any steps; returns the recording and the tokens by request id."""
    recording = Recording(**options)
    running, tokens = {}, {}
    for number, (kind, agent, wait, prompt, output) in enumerate(steps):
        now_s = number + wait / 4
        match kind:
            case "begin":
                request_id = f"r{len(tokens)}"
                previous = list(tokens.values())
                # Now and then a prompt goes on from what was said before.
                if wait and previous:
                    said, answered = previous[-wait % len(previous)]
                    prompt = [*said, *answered, *prompt]
                rid = recording.begin(now_s, agent, prompt)
                running[rid] = request_id
                tokens[request_id] = (prompt, output)
            case "end" | "fail" if running:
                rid = list(running)[wait % len(running)]
                request_id = running.pop(rid)
                if kind == "end":
                    recording.end(rid, now_s, tokens[request_id][1])
                else:
                    recording.recorder.fail(rid, now_s)
            case "call" if agent:
                recording.call(agent, now_s, None, call_id=str(wait))
            case "return" if agent:
                finish = CallFinish(agent=agent, application="app", call_id=str(wait))
                recording.recorder.signal(finish, now_s)
            case "finish" if agent:
                recording.finish(now_s, agent)
            case "close" if wait == 3:
                recording.finish(now_s)
    return recording, tokens


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=60), st.sampled_from([2, 8, 10**6]))
def test_whatever_happens_the_file_is_a_valid_workload_after_every_write(steps, held_blocks):
    recording, _ = drive(steps, held_blocks=held_blocks)
    recording.workload()
    for written in range(len(recording.lines)):
        requests = b"".join(recording.lines[: written + 1]).splitlines()
        Workload(HEADER, [msgspec.json.decode(line, type=Request) for line in requests])
    assert recording.recorder._held == {} and recording.recorder._held_blocks == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_requests_share_in_the_file_what_their_tokens_share_in_whole_blocks(steps):
    recording, tokens = drive(steps)
    for first, second in itertools.combinations(recording.workload().requests, 2):
        (prompt_a, output_a), (prompt_b, output_b) = (
            tokens[request.request_id] for request in (first, second)
        )
        a, b = [*prompt_a, *output_a], [*prompt_b, *output_b]
        assert length(first.prompt) == len(prompt_a) and length(first.output) == len(output_a)
        common = next(
            (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
        )
        expected = common if a == b else common - common % BLOCK
        assert common_prefix(first.prompt + first.output, second.prompt + second.output) == expected


def test_two_recordings_of_the_same_tokens_have_no_hash_in_common():
    def segments(key):
        recording = Recording(key=key)
        recording.turn(None, 0, 1)
        (request,) = recording.requests
        return {span.segment for span in (*request.prompt, *request.output)}

    assert not segments(b"one") & segments(b"two")
    assert segments(b"one") == segments(b"one")


def test_requests_of_different_namespaces_share_nothing():
    recording = Recording()
    for namespace in ("", "lora"):
        recording.recorder.begin(namespace, None, range(8), 0.0, namespace)
        recording.recorder.end(namespace, [1, 2], 1.0)
    first, second = recording.requests
    assert common_prefix(first.prompt, second.prompt) == 0
