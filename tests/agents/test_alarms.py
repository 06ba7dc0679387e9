"""Alarms against a plain dictionary that is searched each time."""

from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.agents.alarms import STALE_KEPT, Alarms

KEYS = st.sampled_from("abcd")
TIMES = st.integers(0, 20).map(float)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), KEYS, TIMES),
            st.tuples(st.just("cancel"), KEYS),
            st.tuples(st.just("pop"), TIMES, st.none() | st.integers(1, 3)),
        ),
        max_size=60,
    )
)
def test_each_key_is_due_once_at_its_last_time(steps):
    alarms: Alarms[str] = Alarms()
    expected: dict[str, float] = {}
    for what, *arguments in steps:
        match what:
            case "set":
                key, time_s = arguments
                alarms.set(key, time_s)
                expected[key] = time_s
            case "cancel":
                alarms.cancel(arguments[0])
                expected.pop(arguments[0], None)
            case "pop":
                now_s, at_most = arguments
                due = sorted(
                    (key for key, time_s in expected.items() if time_s <= now_s),
                    key=lambda key: (expected[key], key),
                )[:at_most]
                assert alarms.pop_due(now_s, at_most) == due
                for key in due:
                    del expected[key]
        assert len(alarms) == len(expected)


def test_what_was_set_again_takes_no_room():
    alarms: Alarms[str] = Alarms()
    for time_s in range(10_000):
        alarms.set("a", float(time_s))
    assert len(alarms._heap) <= STALE_KEPT + 3
    assert alarms.pop_due(9_998.0) == []
    assert alarms.pop_due(9_999.0) == ["a"]


def test_a_time_that_comes_again_and_again_takes_no_room():
    alarms: Alarms[str] = Alarms()
    for _ in range(1000):
        alarms.set("a", 1.0)
        alarms.set("a", 2.0)
    assert len(alarms._heap) <= STALE_KEPT + 3
    assert alarms.pop_due(1.0) == []
    assert alarms.pop_due(2.0) == ["a"]
    assert alarms.pop_due(2.0) == []
