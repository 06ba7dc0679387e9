import pytest

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.events import (
    CallFinish,
    CallProgress,
    CallStart,
    DurationsKnown,
    RequestBegin,
    RequestEnd,
    Tick,
)
from tokencake_sglang.agents.identity import AgentKey, AgentTag
from tokencake_sglang.agents.table import AgentTable, Change
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.signals.front_door import HOUSEKEEPING_S, REFUSALS_KEPT, FrontDoor

CODER = AgentTag(agent="coder")
START = CallStart(agent="coder", call_id="c", tool="test")
FINISH = CallFinish(agent="coder", call_id="c")


class Bench:
    """A front door whose clock and scheduler the test plays."""

    def __init__(self, durations=None, **options):
        self.now_s = 100.0
        self.sent = []
        self.followed = []
        self.config = TokencakeConfig(**options)
        self.door = FrontDoor(
            self.config,
            self.send,
            lambda: self.now_s,
            durations=durations,
            follow=lambda *what: self.followed.append(what),
        )

    def send(self, sequence, stamp_s, event):
        self.sent.append((sequence, stamp_s, event))

    def events(self):
        return [event for _, _, event in self.sent]


@pytest.fixture
def bench():
    return Bench(hold_timeout_s=5.0, call_timeout_s=30.0, agent_timeout_s=60.0)


@pytest.fixture
def stalled(bench):
    bench.door.request_begin(CODER, "r")
    bench.door.request_end("r")
    bench.door.submit(START)
    return bench


def test_events_are_numbered_without_gaps_and_stamped_in_order(bench):
    for _ in range(3):
        bench.door.request_begin(CODER, "r")
        bench.door.request_end("r")
        bench.now_s += 1.0
    assert [sequence for sequence, _, _ in bench.sent] == [1, 2, 3, 4, 5, 6]
    assert [stamp_s for _, stamp_s, _ in bench.sent] == [100.0, 100.0, 101.0, 101.0, 102.0, 102.0]


def test_a_clock_that_runs_backwards_does_not_show_in_the_stamps(bench):
    bench.door.request_begin(CODER, "r")
    bench.now_s = 50.0
    bench.door.request_end("r")
    assert [stamp_s for _, stamp_s, _ in bench.sent] == [100.0, 100.0]


def test_an_accepted_signal_is_sent_and_acknowledged_with_its_number(stalled):
    acknowledgement = stalled.door.submit(FINISH)
    assert (acknowledgement.sequence, acknowledgement.repeat) == (4, False)
    assert stalled.events()[-1] == FINISH


def test_a_repeat_is_acknowledged_and_not_sent(stalled):
    acknowledgement = stalled.door.submit(START)
    assert (acknowledgement.sequence, acknowledgement.repeat) == (3, True)
    assert len(stalled.sent) == 3


def test_progress_is_sent_and_keeps_ticks_coming(stalled):
    progress = CallProgress(agent="coder", call_id="c", fraction=0.5)
    stalled.now_s += 20.0
    assert not stalled.door.submit(progress).repeat
    assert stalled.door.submit(progress).repeat
    assert stalled.events()[-1] == progress
    assert stalled.door.snapshot()["signals"]["accepted"]["call_progress"] == 1
    stalled.now_s += 29.0
    stalled.door.tick()
    assert stalled.door.table.open_calls == 1, "it has reported"


def test_what_earlier_runs_learnt_is_the_first_entry():
    bench = Bench(durations=b"state")
    bench.door.request_begin(CODER, "r")
    bench.door.open()
    assert bench.sent == [
        (1, 100.0, DurationsKnown(state=b"state")),
        (2, 100.0, RequestBegin(rid="r", tag=CODER)),
    ]


def test_what_earlier_runs_learnt_can_be_sent_before_anything_happens():
    bench = Bench(durations=b"state")
    bench.door.open()
    assert bench.events() == [DurationsKnown(state=b"state")]


def test_without_anything_learnt_the_first_entry_is_the_first_event(bench):
    bench.door.open()
    assert bench.sent == []


def test_a_first_entry_that_does_not_arrive_keeps_no_request_back():
    bench = Bench(durations=b"state")
    bench.door._send, working = None, bench.door._send
    bench.door.open()
    bench.door._send = working
    bench.door.request_begin(CODER, "r")
    assert [(sequence, type(event)) for sequence, _, event in bench.sent] == [(2, RequestBegin)]
    assert bench.door.snapshot()["send_failures"] == 1


def test_every_consequence_is_followed_once_at_the_time_of_its_stamp(stalled):
    stalled.now_s += 7.0
    stalled.door.submit(FINISH)
    stalled.door.submit(FINISH)
    followed = [(transition.change, now_s) for transition, now_s in stalled.followed]
    assert followed == [
        (Change.REQUEST_BEGAN, 100.0),
        (Change.REQUEST_ENDED, 100.0),
        (Change.CALL_STARTED, 100.0),
        (Change.CALL_FINISHED, 107.0),
    ]


def test_a_refused_signal_is_raised_counted_and_not_sent(bench):
    with pytest.raises(AgentError):
        bench.door.submit(START)
    with pytest.raises(AgentError):
        bench.door.receive({"type": "nonsense"})
    assert bench.sent == []
    assert bench.door.snapshot()["signals"]["refused"] == {
        "unknown_agent": 1,
        "invalid_message": 1,
    }


def test_a_request_end_is_sent_once(bench):
    bench.door.request_begin(CODER, "r")
    for _ in range(3):
        bench.door.request_end("r")
    assert bench.events() == [RequestBegin(rid="r", tag=CODER), RequestEnd(rid="r")]


def test_the_end_of_an_untagged_request_is_not_sent(bench):
    bench.door.request_end("never tagged")
    assert bench.sent == []


def test_ticks_are_needed_while_a_call_is_open(stalled):
    assert stalled.door.needs_ticks()
    stalled.now_s += 1000.0
    assert stalled.door.needs_ticks()


def test_ticks_go_on_until_an_upload_can_no_longer_be_held(stalled):
    stalled.door.submit(FINISH)
    stalled.now_s += 6.9
    assert stalled.door.needs_ticks()
    stalled.now_s += 0.2
    assert not stalled.door.needs_ticks()


def test_a_lapsed_call_is_followed_by_ticks_too(stalled):
    stalled.now_s += 30.0
    stalled.door.tick()
    assert stalled.door.table.open_calls == 0
    assert stalled.door.needs_ticks()


@pytest.mark.parametrize(
    ("options", "watched"),
    [
        ({}, True),
        ({"untagged_weight": 2.0}, True),
        ({"untagged_weight": 0.0}, False),
        ({"untagged_weight": 0.0, "untagged_first_token_s": 3.0}, True),
    ],
)
def test_where_untagged_requests_are_watched_beside_tagged_ones_ticks_are_needed(options, watched):
    bench = Bench(**options)
    bench.door.request_begin(None, "chat")
    assert not bench.door.needs_ticks(), "nobody is there to share with"
    bench.door.request_begin(CODER, "r")
    assert bench.door.needs_ticks() is watched
    bench.door.request_end("chat")
    assert not bench.door.needs_ticks()
    bench.door.request_begin(None, "chat")
    bench.door.request_end("r")
    assert not bench.door.needs_ticks()


def test_no_rank_is_told_of_untagged_requests(bench):
    bench.door.request_begin(None, "chat")
    bench.door.request_end("chat")
    bench.door.request_end("chat")
    assert bench.events() == []


def test_no_ticks_are_needed_when_nobody_is_known(bench):
    bench.now_s += 1000.0
    assert not bench.door.needs_ticks()


def test_quiet_agents_get_a_rare_tick_and_are_forgotten_by_it(bench):
    bench.door.request_begin(CODER, "r")
    bench.door.request_end("r")
    assert not bench.door.needs_ticks()
    bench.now_s += HOUSEKEEPING_S
    assert bench.door.needs_ticks()
    bench.door.tick()
    assert not bench.door.needs_ticks()
    bench.now_s += 60.0
    bench.door.tick()
    assert len(bench.door.table) == 0
    assert bench.events()[-1] == Tick()


def test_a_replica_of_the_sent_events_equals_the_authoritative_table(stalled):
    stalled.door.submit(FINISH)
    stalled.door.submit(FINISH)
    stalled.now_s += 1.0
    stalled.door.request_begin(CODER, "r2")
    stalled.door.tick()
    replica = AgentTable(call_timeout_s=30.0, agent_timeout_s=60.0)
    for _, stamp_s, event in stalled.sent:
        replica.apply(event, stamp_s)
    key = AgentKey("coder", "coder")
    assert replica.get(key) == stalled.door.table.get(key)


def test_a_scheduler_that_cannot_be_told_makes_the_signal_unavailable(stalled):
    def broken(*_):
        raise OSError("gone")

    stalled.door._send = broken
    with pytest.raises(AgentError) as caught:
        stalled.door.submit(FINISH)
    assert caught.value.code is ErrorCode.UNAVAILABLE
    assert stalled.door.snapshot()["send_failures"] == 1


def test_a_request_is_served_even_if_the_scheduler_cannot_be_told(bench):
    def broken(*_):
        raise OSError("gone")

    bench.door._send = broken
    bench.door.request_begin(CODER, "r")
    bench.door.request_end("r")
    bench.door.tick()


def test_the_snapshot_shows_agents_counters_and_the_latest_refusals(stalled):
    for index in range(REFUSALS_KEPT + 8):
        with pytest.raises(AgentError):
            stalled.door.submit(CallFinish(agent="coder", call_id=f"unknown-{index}"))
    stalled.door.submit(START)
    stalled.now_s += 2.0
    snapshot = stalled.door.snapshot()
    assert snapshot["agents"] == {"active": 0, "stalled": 1, "idle": 0, "finished": 0}
    assert snapshot["signals"] == {
        "accepted": {"call_start": 1},
        "repeated": {"call_start": 1},
        "refused": {"unknown_call": REFUSALS_KEPT + 8},
    }
    assert len(snapshot["refusals"]) == REFUSALS_KEPT
    latest = snapshot["refusals"][0]
    assert latest["seconds_ago"] == 2.0 and f"unknown-{REFUSALS_KEPT + 7}" in latest["message"]
