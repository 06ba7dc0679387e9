"""What was learnt of calls' lengths: from the main process's file to the ranks, and back to it."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from tokencake_sglang.agents.events import CallFinish, CallProgress, CallStart, DurationsKnown, Tick
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.config import ConfigError, TokencakeConfig
from tokencake_sglang.engine import main_process as module
from tokencake_sglang.engine.durations_file import check_durations_file
from tokencake_sglang.engine.main_process import MainProcess
from tokencake_sglang.engine.messages import TokencakeEvent
from tokencake_sglang.engine.rank import RankPlanner
from tokencake_sglang.temporal.duration import CallFeatures, DurationModel
from tokencake_sglang.temporal.durations import storage
from tokencake_sglang.temporal.returns import learn

CODER = AgentTag(agent="coder", application="run")
WHO = {"agent": "coder", "application": "run"}
SEARCH = CallFeatures("search", agent_type="default", application="run")
RAG = CallFeatures("rag", agent_type="default", application="run", stages=("query", "embed"))


class LearningRank(RankPlanner):
    """A rank that does nothing but learn."""

    def __init__(self):
        facts = {"pool_tokens": 64, "kv_bytes_per_token": 1, "writes_log": False}
        super().__init__(TokencakeConfig(), SimpleNamespace(), **facts)
        self.durations = DurationModel(1.0)

    def durations_known(self, durations):
        self.durations = durations

    def follow(self, transition):
        learn(self.durations, transition, self.now_s)


LearningRank.__abstractmethods__ = frozenset()


class Run:
    """One run of a server: its main process, what that sends, and a rank that receives it."""

    def __init__(self, path, **options):
        self.sent = []
        manager = SimpleNamespace(
            server_args=SimpleNamespace(port=30_000, api_key=None),
            _dispatch_to_scheduler=self._dispatch,
            asyncio_tasks=set(),
        )
        config = TokencakeConfig(zmq_endpoint="off", durations_file=str(path), **options)
        self.rank = LearningRank()
        self.main = MainProcess(config, manager)
        self.now_s = self.main.front_door._stamp_s
        self.main.front_door._clock = lambda: self.now_s
        self._calls = 0

    def _dispatch(self, message: TokencakeEvent):
        self.sent.append(message.entry())
        self.rank.receive(message)

    def call(self, tool="search", length_s=9.0, stages=(), stage_s=()):
        door, self._calls = self.main.front_door, self._calls + 1
        door.request_begin(CODER, "r")
        door.request_end("r")
        call = {**WHO, "call_id": str(self._calls)}
        door.submit(CallStart(**call, tool=tool, stages=stages))
        for stage, began_s in zip(stages[1:], stage_s, strict=True):
            self.now_s += began_s
            door.submit(CallProgress(**call, stage=stage))
        self.now_s += length_s - sum(stage_s)
        door.submit(CallFinish(**call))

    @property
    def learnt(self) -> DurationModel:
        return self.main._durations_file.durations


def median_s(durations, call):
    return durations.expect(call).quantile(0.5)


def test_after_a_restart_the_first_prediction_goes_by_what_was_learnt_before(tmp_path):
    path = tmp_path / "durations"
    before = Run(path)
    for _ in range(20):
        before.call(length_s=9.0)
        before.call("rag", 5.0, stages=RAG.stages, stage_s=(4.0,))
    assert not path.exists()
    before.main.close()
    after = Run(path)
    after.main.front_door.open()
    (entry,) = after.sent
    assert (entry.sequence, type(entry.event)) == (1, DurationsKnown)
    for durations in (after.learnt, after.rank.durations):
        assert median_s(durations, SEARCH) == pytest.approx(9.0, rel=0.1)
        second = durations.expect_after(RAG, finished=1, elapsed_s=20.0)
        assert second.quantile(0.5, 20.0) == pytest.approx(21.0, rel=0.1)


def test_main_process_and_rank_know_the_same_before_and_after_a_restart(tmp_path):
    path = tmp_path / "durations"
    for _ in range(2):
        run = Run(path)
        for length_s in (0.5, 7.0, 3.0):
            run.call(length_s=length_s)
            run.call("rag", 5.0, stages=RAG.stages, stage_s=(length_s / 2,))
        assert run.rank.durations.to_bytes() == run.learnt.to_bytes()
        run.main.close()
        assert path.read_bytes() == run.learnt.to_bytes()


def test_the_default_is_the_options_and_not_that_of_the_run_that_learnt(tmp_path):
    path = tmp_path / "durations"
    first = Run(path, default_call_s=1.0)
    first.call()
    first.main.close()
    second = Run(path, default_call_s=30.0)
    second.main.front_door.open()
    assert second.learnt.default_s == second.rank.durations.default_s == 30.0


def test_without_a_file_nothing_is_sent_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="tokencake_sglang")
    path = tmp_path / "durations"
    run = Run(path)
    run.main.front_door.open()
    assert run.sent == []
    assert f"{path} is not there yet" in caplog.text
    run.main.close()
    assert not path.exists(), "nothing was learnt"


def test_a_foreign_file_ends_the_start_and_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not durations")
    with pytest.raises(ConfigError) as caught:
        Run(path)
    message = str(caught.value)
    assert message.startswith(f"--tokencake-durations-file: {path}: not a file of durations")
    assert message.endswith("remove it or name another one to begin anew")
    assert path.read_text() == "not durations"


def test_a_file_that_could_never_be_written_ends_the_start(tmp_path):
    path = tmp_path / "nowhere" / "durations"
    with pytest.raises(ConfigError, match="--tokencake-durations-file: cannot write .*nowhere"):
        Run(path)
    with pytest.raises(ConfigError, match="cannot write .*nowhere"):  # before the model is loaded
        check_durations_file(TokencakeConfig(durations_file=str(path)))


def test_a_running_server_saves_what_it_learnt(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_INTERVAL_S", 0.01)
    path = tmp_path / "durations"
    run = Run(path)

    async def serve():
        run.main.start()
        await asyncio.sleep(0.1)
        assert not path.exists(), "nothing was learnt"
        run.call()
        while not path.exists():
            await asyncio.sleep(0.01)
        written = path.stat().st_mtime_ns
        run.main.front_door.tick()
        await asyncio.sleep(0.1)
        assert path.stat().st_mtime_ns == written, "nothing was learnt since"

    asyncio.run(asyncio.wait_for(serve(), 20.0))
    assert DurationModel.load(path).to_bytes() == run.learnt.to_bytes()
    run.main.close()


def test_the_ranks_are_told_when_the_server_starts(tmp_path):
    path = tmp_path / "durations"
    DurationModel(1.0).save(path)
    run = Run(path)

    async def serve():
        run.main.start()

    asyncio.run(serve())
    assert [type(entry.event) for entry in run.sent] == [DurationsKnown]


def test_a_stage_is_kept_although_its_call_never_ended(tmp_path):
    path = tmp_path / "durations"
    run = Run(path)
    door, call = run.main.front_door, {**WHO, "call_id": "open"}
    door.request_begin(CODER, "r")
    door.submit(CallStart(**call, tool="rag", stages=RAG.stages))
    door.submit(CallProgress(**call, stage="embed"))
    run.main.close()
    assert DurationModel.load(path).to_bytes() == run.learnt.to_bytes()


def test_a_save_that_fails_is_logged_and_tried_again(tmp_path, monkeypatch, caplog):
    path = tmp_path / "durations"
    run = Run(path)
    run.call()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("os.replace", full)
        asyncio.run(run.main._durations_file.save())
    assert f"cannot write {path}: No space left on device" in caplog.text
    run.main.close()
    assert DurationModel.load(path).to_bytes() == run.learnt.to_bytes()


def test_a_slow_save_does_not_undo_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "durations"
    run = Run(path)
    run.call()
    late = []
    monkeypatch.setattr(asyncio, "to_thread", _later(late))
    asyncio.run(run.main._durations_file.save())
    run.call()
    run.main.close()
    late[0]()
    assert path.read_bytes() == run.learnt.to_bytes()


def _later(kept):
    async def to_thread(function, *args):
        kept.append(lambda: function(*args))

    return to_thread


def test_what_cannot_be_read_is_logged_by_the_rank_which_goes_on(caplog):
    rank = LearningRank()
    before = rank.durations
    for sequence, state in enumerate((b"", b"\x80", storage.encode(storage.Heading())), start=1):
        rank.receive(TokencakeEvent.of(sequence, 100.0, DurationsKnown(state=state)))
        assert (rank.sequence, rank.durations) == (sequence, before)
    assert caplog.text.count("cannot be read here") == 3
    rank.receive(TokencakeEvent.of(4, 200.0, Tick()))
    assert rank.now_s == 200.0


def test_a_lapsed_call_is_not_learnt_from(tmp_path):
    run = Run(tmp_path / "durations", call_timeout_s=10.0)
    run.main.front_door.request_begin(CODER, "r")
    run.main.front_door.request_end("r")
    run.main.front_door.submit(CallStart(**WHO, call_id="lost", tool="search"))
    run.now_s += 11.0
    run.main.front_door.tick()
    assert run.learnt.to_bytes() == DurationModel(1.0).to_bytes()
    run.main.close()
    assert not (tmp_path / "durations").exists()


def test_a_file_that_only_its_owner_can_read(tmp_path):
    run = Run(tmp_path / "durations")
    run.call()
    run.main.close()
    assert (tmp_path / "durations").stat().st_mode & 0o077 == 0
