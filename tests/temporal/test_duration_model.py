"""The model as a whole: stages, memory, persistence, the same answers everywhere."""

import math
import time
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake_sglang.temporal.duration import (
    MAX_STATE_BYTES,
    CallFeatures,
    DurationModel,
    Source,
)
from tokencake_sglang.temporal.durations.history import MAX_NODES

EMPTY = (bytes(8 * 351), 0.0, 1.0, 0.0, 0.0)

names = st.sampled_from(["search", "tests", "write"])
calls = st.builds(
    CallFeatures,
    tool=st.none() | names,
    agent_type=st.sampled_from(["", "a", "b"]),
    application=st.none() | st.sampled_from(["x", "y"]),
    given_s=st.none() | st.floats(0.0, 604_800.0),
    argument_key=st.none() | st.sampled_from(["k", "l"]),
    argument_size=st.none() | st.integers(0, 1 << 40),
)
finished = st.lists(st.tuples(calls, st.floats(0.0, 1e6)), max_size=25)


def learned(from_calls) -> DurationModel:
    model = DurationModel(1.0)
    for call, duration_s in from_calls:
        model.observe(call, duration_s)
    return model


@settings(max_examples=40, deadline=None)
@given(finished, calls)
def test_the_same_calls_give_the_same_prediction(past, call):
    assert learned(past).expect(call) == learned(past).expect(call)


@settings(max_examples=40, deadline=None)
@given(finished, calls, st.floats(0.0, 1e6))
def test_every_prediction_is_a_distribution(past, call, elapsed_s):
    expected = learned(past).expect(call)
    assert expected.survival(0.0) == 1.0
    assert elapsed_s <= expected.quantile(0.1, elapsed_s) <= expected.quantile(0.9, elapsed_s)
    assert expected.mass.sum() == pytest.approx(1.0)


@settings(max_examples=20, deadline=None)
@given(finished, calls)
def test_to_expect_changes_nothing(past, call):
    model = learned(past)
    before = model.to_bytes()
    model.expect(call)
    model.source(call)
    assert model.to_bytes() == before


def test_a_length_that_is_no_number_is_refused_and_changes_nothing():
    model = learned([(CallFeatures("t"), 2.0)])
    before = model.to_bytes()
    with pytest.raises(ValueError, match="duration_s: expected seconds, got nan"):
        model.observe(CallFeatures("t", given_s=1.0), float("nan"))
    assert model.to_bytes() == before


def test_a_bare_name_is_a_call_of_that_tool():
    model = DurationModel(1.0)
    for _ in range(30):
        model.observe("search", 9.0)
    assert model.expect(CallFeatures("search")).quantile(0.5) == pytest.approx(9.0, rel=0.05)
    assert model.source(CallFeatures("search")) is Source.HISTORY


class TestStages:
    RAG = CallFeatures("rag", "reader", stages=("query", "embed", "generate"))

    def model(self) -> DurationModel:
        model = DurationModel(1.0)
        for number in range(60):
            wobble = 1.0 + 0.1 * (number % 3 - 1)
            model.observe_stage(self.RAG, "query", 1.0 * wobble)
            model.observe_stage(self.RAG, "embed", 4.0 * wobble)
            model.observe_stage(self.RAG, "generate", 20.0 * wobble)
        return model

    def test_stages_add_up_before_the_whole_call_was_ever_seen(self):
        assert self.model().expect(self.RAG).quantile(0.5) == pytest.approx(25.0, rel=0.1)

    def test_a_finished_stage_leaves_only_the_rest(self):
        slow_start = self.model().expect_after(self.RAG, finished=1, elapsed_s=100.0)
        assert slow_start.quantile(0.5, 100.0) == pytest.approx(124.0, rel=0.1)
        last = self.model().expect_after(self.RAG, finished=2, elapsed_s=5.0)
        assert last.quantile(0.5, 5.0) == pytest.approx(25.0, rel=0.1)
        assert last.quantile(0.9) / last.quantile(0.1) < 1.6

    def test_a_stage_without_history_falls_back_to_the_whole_call(self):
        model = self.model()
        for _ in range(30):
            model.observe(CallFeatures("rag", "reader"), 50.0)
        other = CallFeatures("rag", "reader", stages=("query", "rank"))
        assert model.expect(other).quantile(0.5) == pytest.approx(50.0, rel=0.1)
        assert model.expect_after(other, 1, 2.0).quantile(0.5) == pytest.approx(50.0, rel=0.1)

    def test_a_stage_is_not_a_tool_of_its_name(self):
        assert self.model().source(CallFeatures("query", "reader")) is Source.DEFAULT

    def test_past_its_stages_a_call_still_has_a_rest(self):
        expected = self.model().expect(self.RAG)
        assert expected.quantile(0.5, 2000.0) > 2500.0


class TestMemory:
    def test_it_is_bounded_in_bytes(self):
        """Names as long as signals may carry, none of them twice, every feature declared."""
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            model = DurationModel(1.0)
            for number in range(MAX_NODES + 500):
                name = f"{number:0256}"
                features = CallFeatures(name, name[::-1], name + "a", 3.0, name + "k", number)
                model.observe(features, 2.0 + number % 7)
                model.observe_stage(features, name[::-1], 1.0)
            del features, name
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < MAX_STATE_BYTES

    def test_what_was_longest_unseen_goes_first(self):
        model = DurationModel(1.0)
        for number in range(1500):
            model.observe(CallFeatures(f"tool-{number}"), 7.0)
        assert model.source(CallFeatures("tool-0")) is Source.DEFAULT
        assert model.source(CallFeatures("tool-1499")) is Source.HISTORY


class TestPersistence:
    @settings(max_examples=25, deadline=None)
    @given(finished, finished, calls)
    def test_a_restored_model_goes_on_as_the_old_one(self, past, future, call):
        model = learned(past)
        restored = DurationModel.from_bytes(model.to_bytes())
        for finished_call, duration_s in future:
            model.observe(finished_call, duration_s)
            restored.observe(finished_call, duration_s)
        assert restored.expect(call) == model.expect(call)
        assert restored.to_bytes() == model.to_bytes()

    def test_through_a_file(self, tmp_path):
        model = learned([(CallFeatures("t", "a", given_s=2.0), 3.0)] * 9)
        model.save(tmp_path / "durations")
        model.save(tmp_path / "durations")  # over itself
        assert DurationModel.load(tmp_path / "durations").to_bytes() == model.to_bytes()
        assert [path.name for path in tmp_path.iterdir()] == ["durations"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "truncated"),
            (b"{}", "Expected `object`"),
            (msgspec.msgpack.encode({"format": "other"}), "got 'other'"),
            (msgspec.msgpack.encode({}), "missing required field"),
            (b"\x81\xa1a" + b"\x91" * 100_000, "ecursion"),
        ],
    )
    def test_a_foreign_file_is_refused_by_name(self, tmp_path, content, message):
        path = tmp_path / "durations"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"durations: not a file of durations.*{message}"):
            DurationModel.load(path)
        assert path.read_bytes() == content

    def test_a_folder_is_refused_by_name(self, tmp_path):
        with pytest.raises(ValueError, match="Is a directory"):
            DurationModel.load(tmp_path)

    def test_a_file_that_is_not_there_is_refused_by_name(self, tmp_path):
        with pytest.raises(ValueError, match="durations: not a file of durations"):
            DurationModel.load(tmp_path / "durations")

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("version", 1, "expected 'tokencake-durations' of version 2, .* of version 1"),
            ("format", "other", "expected 'tokencake-durations' .* got 'other' of version 2"),
            ("scores", [1.0], "scores: expected 3"),
            ("scores", [1.0, math.nan, 1.0], "scores: expected finite numbers"),
            ("level_scores", [], "level_scores: expected"),
            ("unheard", 1, "unheard"),
            ("default_s", -1.0, "default_s: expected seconds"),
            ("nodes", [((9, None, None, None), EMPTY)], "nodes: expected levels below 6"),
            ("nodes", [((0, None, None, None), EMPTY)], "nodes: .* none of them empty"),
            ("ratios", (b"12345678", 1.0, 1.0, 0.0, 0.0), "weights: expected 321, got 1"),
            ("ratios", (bytes(8 * 321), 0.0, 1.0, 0.0, math.nan), "last, steps: got 0.0, nan"),
            ("ratios", (bytes(8 * 321), 0.0, math.nan, 0.0, 0.0), "total, latest: got 0.0, nan"),
        ],
    )
    def test_values_of_another_version_are_refused(self, name, value, message):
        values = msgspec.msgpack.decode(DurationModel(1.0).to_bytes()) | {name: value}
        with pytest.raises(ValueError, match=message):
            DurationModel.from_bytes(msgspec.msgpack.encode(values))

    def test_what_was_learnt_can_be_given_another_default(self):
        model = learned([(CallFeatures("t"), 9.0)] * 30)
        other = DurationModel.from_bytes(model.to_bytes(), default_s=100.0)
        assert other.expect(CallFeatures("t")).quantile(0.5) == pytest.approx(9.0, rel=0.05)
        empty = DurationModel.from_bytes(DurationModel(1.0).to_bytes(), default_s=100.0)
        assert empty.expect(CallFeatures("t")).quantile(0.5) == pytest.approx(100.0, rel=0.05)

    def test_a_failed_save_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "durations"
        DurationModel(1.0).save(path)
        content = path.read_bytes()

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            learned([(CallFeatures("t"), 1.0)]).save(path)
        assert path.read_bytes() == content
        assert [p.name for p in tmp_path.iterdir()] == ["durations"]


def test_it_is_fast_enough_for_a_schedulers_loop():
    """Ten times what it takes on an idle core, for this one may not be."""
    model = learned([(CallFeatures("t", "a", "x", argument_size=9), 2.0)] * 50)
    call = CallFeatures("t", "a", "x", argument_size=9)

    def best_us(action) -> float:
        times = []
        for _ in range(10):
            began = time.process_time()
            for _ in range(200):
                action()
            times.append((time.process_time() - began) / 200 * 1e6)
        return min(times)

    assert best_us(lambda: model.expect(call).quantile(0.5, 1.0)) < 200.0
    assert best_us(lambda: model.observe(call, 2.0)) < 200.0
