"""How long applications still take: what is learnt by watching them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.spatial import paths
from tokencake_sglang.spatial.paths import SETTLE_S, Place, RemainingPaths

PLAN, SEARCH, SUMMARY = (Place("worker", name) for name in ("plan", "search", "summary"))


def begin(learnt: RemainingPaths, application: str, place: Place, at_s: float) -> None:
    learnt.began(application, place, at_s, at_s)


def over(learnt: RemainingPaths, application: str, at_s: float) -> None:
    """Its agents finish, and nothing more comes of it."""
    learnt.finished(application, at_s)
    begin(learnt, "another", Place("worker", "elsewhere"), at_s + SETTLE_S)
    learnt.forget("another")


def watched(*ways: float) -> RemainingPaths:
    """Applications that searched after 1 s and ended so many seconds after that."""
    learnt = RemainingPaths()
    start_s = 0.0
    for number, way_s in enumerate(ways):
        name = f"app-{number}"
        begin(learnt, name, PLAN, start_s)
        begin(learnt, name, SEARCH, start_s + 1.0)
        over(learnt, name, start_s + 1.0 + way_s)
        start_s += 1.0 + way_s + 2 * SETTLE_S
    return learnt


def test_nothing_is_known_before_an_application_has_ended():
    learnt = RemainingPaths()
    begin(learnt, "app", PLAN, 0.0)
    learnt.finished("app", 5.0)
    begin(learnt, "other", PLAN, 5.0 + SETTLE_S / 2)
    assert learnt.remaining_s(PLAN) is None


def test_each_turn_is_followed_by_what_the_application_took_from_there_on():
    learnt = watched(20.0)
    assert (learnt.remaining_s(PLAN), learnt.remaining_s(SEARCH)) == (21.0, 20.0)
    assert learnt.remaining_s(SUMMARY) is None


def test_branches_that_begin_together_have_the_same_way_left_whichever_of_them_is_short():
    """The application's end is the end of both: who waits for whom at a join nobody says. A graph
    that was declared tells them apart (test_graph.py)."""
    learnt = RemainingPaths()
    short, long, last = (Place("worker", name) for name in ("short", "long", "last"))
    begin(learnt, "app", short, 10.0)
    begin(learnt, "app", long, 10.0)
    begin(learnt, "app", last, 90.0)
    over(learnt, "app", 100.0)
    assert learnt.remaining_s(short) == learnt.remaining_s(long) == 90.0
    assert learnt.remaining_s(last) == 10.0


def test_an_application_that_goes_on_was_not_over():
    """Agents one after the other: between two of them all that are known have finished."""
    learnt = RemainingPaths()
    begin(learnt, "app", PLAN, 0.0)
    learnt.finished("app", 3.0)
    begin(learnt, "app", SEARCH, 4.0)
    over(learnt, "app", 30.0)
    assert (learnt.remaining_s(PLAN), learnt.remaining_s(SEARCH)) == (30.0, 26.0)


def test_several_applications_give_their_mean():
    assert watched(10.0, 20.0, 60.0).remaining_s(SEARCH) == pytest.approx(30.0)


def test_it_follows_a_change():
    learnt = watched(*[10.0] * 50, *[90.0] * 30)
    assert learnt.remaining_s(SEARCH) == pytest.approx(90.0, rel=0.05)


def test_of_a_place_come_by_twice_the_first_counts():
    learnt = RemainingPaths()
    for at_s in (0.0, 5.0):
        begin(learnt, "app", SEARCH, at_s)
    over(learnt, "app", 8.0)
    assert learnt.remaining_s(SEARCH) == 8.0


@pytest.mark.parametrize("noted", [(0, 1, 2), (1, 2)])
def test_an_agent_is_there_since_the_first_of_its_turns_that_was_noted(noted):
    learnt = RemainingPaths()
    for turn in noted:
        begin(learnt, "app", Place("worker", "loop", turn), 10.0 + turn)
    begin(learnt, "app", Place("worker", "other", 0), 1.0)
    assert learnt.first_began_s("app", Place("worker", "loop", 2)) == 10.0 + noted[0]
    assert learnt.first_began_s("app", Place("worker", "none", 2)) is None
    assert learnt.first_began_s("elsewhere", Place("worker", "loop", 2)) is None


def test_turns_are_places_of_their_own():
    learnt = RemainingPaths()
    first, second = (Place.of("worker", "loop", turns) for turns in (0, 1))
    begin(learnt, "app", first, 0.0)
    begin(learnt, "app", second, 6.0)
    over(learnt, "app", 10.0)
    assert (learnt.remaining_s(first), learnt.remaining_s(second)) == (10.0, 4.0)
    assert Place.of("worker", "loop", 100) == Place.of("worker", "loop", 200)


def test_what_is_forgotten_before_its_end_teaches_nothing():
    learnt = RemainingPaths()
    begin(learnt, "app", PLAN, 0.0)
    learnt.forget("app")
    over(learnt, "app", 9.0)
    assert learnt.remaining_s(PLAN) is None


def test_what_is_forgotten_after_its_end_teaches_what_was_seen():
    learnt = RemainingPaths()
    begin(learnt, "app", PLAN, 0.0)
    learnt.finished("app", 9.0)
    learnt.forget("app")
    assert learnt.remaining_s(PLAN) == 9.0


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(paths, "PLACES_KEPT", 8)
    monkeypatch.setattr(paths, "PLACES_PER_APPLICATION", 5)
    learnt = RemainingPaths()
    for number in range(4):
        for step in range(9):
            begin(learnt, f"app-{number}", Place("worker", f"{number}/{step}"), 0.0)
        learnt.finished(f"app-{number}", 1.0)
        learnt.forget(f"app-{number}")
    assert len(learnt) == 8
    assert learnt.remaining_s(Place("worker", "3/4")) == 1.0
    assert learnt.remaining_s(Place("worker", "3/5")) is None  # never watched
    assert learnt.remaining_s(Place("worker", "0/0")) is None  # forgotten since
    assert not learnt._watched
    assert not learnt._ended


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=30))
def test_the_estimate_lies_among_what_was_seen(ways):
    remaining_s = watched(*ways).remaining_s(SEARCH)
    assert min(ways) - 1e-3 <= remaining_s <= max(ways) + 1e-3
