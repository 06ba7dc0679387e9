"""Which applications take part, on a real scheduler with a pool of 2,048 tokens."""

import time

import pytest

from tests.engine.scenarios import prompt, start_call
from tokencake_sglang.agents.events import (
    AgentFinish,
    ApplicationFinish,
    ApplicationStart,
    RequestBegin,
    RequestEnd,
)
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.engine.applications import IDLE_S
from tokencake_sglang.spatial.order import turn_to_enter_s

OLD = AgentTag(agent="o", application="old")
NEW = AgentTag(agent="n", application="new")


@pytest.fixture
def taken(harness):
    """The old application stopped in a call; its demand fills three quarters of the pool."""
    harness.generate(prompt(1, 1500), 4, OLD)
    start_call(harness, OLD, 300.0)
    return harness


@pytest.fixture
def queued(taken) -> tuple[str, str]:
    """A member's request that runs, and a newcomer's that came after it."""
    running = taken.submit(prompt(2, 100), 200)
    taken.step(2)
    newcomer = taken.submit(prompt(3, 900), 4, NEW)
    taken.step(5)
    return running, newcomer


def waiting(harness) -> list[str]:
    return [req.rid for req in harness.scheduler.waiting_queue]


def test_a_newcomer_waits_although_the_memory_is_free(taken, queued):
    running, newcomer = queued
    assert waiting(taken) == [newcomer]
    assert taken.planner.log.counts["defer.working_set"] > 0
    taken.run(running, newcomer)


def test_unbounded_it_does_not_wait(taken, monkeypatch):
    monkeypatch.setattr(taken.planner.applications, "bounded", False)
    running = taken.submit(prompt(2, 100), 200)
    taken.step(2)
    newcomer = taken.submit(prompt(3, 900), 4, NEW)
    taken.step(8)
    assert newcomer in taken.finished
    taken.run(running)


def test_it_enters_when_a_member_has_left(taken, queued):
    running, newcomer = queued
    taken.send(AgentFinish(agent=OLD.agent, application=OLD.application))
    taken.step(8)
    assert newcomer in taken.finished
    assert running not in taken.finished
    taken.run(running)


def test_it_enters_when_a_member_turns_out_to_be_idle_mostly(taken, queued):
    running, newcomer = queued
    taken.at(taken.now_s + 60.0)
    taken.step(8)
    assert newcomer in taken.finished
    taken.run(running)


def test_an_attempt_in_vain_is_not_repeated(taken, queued):
    """Each one matches the prompts that wait."""
    running, newcomer = queued
    before = taken.planner.log.counts["defer.working_set"]
    taken.step(20)
    assert taken.planner.log.counts["defer.working_set"] == before
    taken.run(running, newcomer)


def test_members_and_untagged_requests_pass_those_outside(taken, queued):
    running, newcomer = queued
    member = taken.submit(prompt(4, 100), 2, AgentTag(agent="second", application="old"))
    untagged = taken.submit(prompt(5, 100), 2)
    taken.step(6)
    assert member in taken.finished
    assert untagged in taken.finished
    assert waiting(taken) == [newcomer]
    taken.run(running, newcomer)


def test_untagged_requests_do_not_wait_for_a_newcomer_that_has_gone(taken, queued):
    running, newcomer = queued
    taken.abort(newcomer)
    taken.step(2)
    untagged = taken.submit(prompt(5, 100), 2)
    taken.step(6)
    assert untagged in taken.finished
    assert running not in taken.finished
    taken.run(running)


def test_a_smaller_newcomer_passes_one_that_came_with_it(taken, queued):
    running, larger = queued
    smaller = taken.submit(prompt(6, 20), 2, AgentTag(agent="s", application="smaller"))
    taken.step(6)
    assert smaller in taken.finished
    assert waiting(taken) == [larger]
    taken.run(running, larger)


def test_a_smaller_newcomer_does_not_pass_an_older_one(taken, queued):
    """By nobody who came later than its prompt weighs is it overtaken: so nobody starves."""
    running, older = queued
    taken.at(taken.now_s + turn_to_enter_s(0.0, 900))
    younger = taken.submit(prompt(6, 20), 2, AgentTag(agent="y", application="younger"))
    untagged = taken.submit(prompt(5, 100), 2)
    taken.step(6)
    assert untagged in taken.finished
    assert waiting(taken) == [older, younger]
    taken.run(running, older, younger)


def test_of_newcomers_the_one_that_declares_less_output_passes(taken, queued):
    """Also where it is declared only while it waits, and whatever their first prompts are."""
    running, larger = queued
    smaller = taken.submit(prompt(6, 20), 2, AgentTag(agent="s", application="smaller"))
    taken.send(ApplicationStart(application="smaller", expected_output_tokens=9000))
    taken.send(ApplicationStart(application=NEW.application, expected_output_tokens=8000))
    taken.step(6)
    assert waiting(taken) == [larger, smaller]
    taken.send(ApplicationStart(application="smaller", expected_output_tokens=7000))
    taken.step(6)
    assert smaller in taken.finished
    assert waiting(taken) == [larger]
    taken.run(running, larger)


def test_what_a_newcomer_declared_counts_until_its_last_request_is_over(taken, queued):
    """Its application may be said to be over while the request still waits."""
    running, smaller = queued
    larger = taken.submit(prompt(6, 1000), 2, AgentTag(agent="l", application="larger"))
    taken.send(ApplicationStart(application="larger", expected_output_tokens=1))
    taken.step(6)
    assert waiting(taken) == [larger, smaller]
    taken.send(ApplicationFinish(application="larger"))
    untagged = taken.submit(prompt(5, 20), 2)  # another attempt at admission
    taken.step(6)
    assert taken.planner.table.declared("larger") is None
    assert untagged in taken.finished
    assert waiting(taken) == [larger, smaller]
    taken.run(running, larger, smaller)


def test_whoever_is_alone_is_taken_in(taken):
    newcomer = taken.submit(prompt(3, 1900), 4, NEW)
    taken.run(newcomer, limit=20)


def test_who_fell_silent_makes_room_and_comes_back_unasked(harness, monkeypatch):
    working_set = harness.planner.applications.working_set
    monkeypatch.setattr(working_set, "device_tokens", 1200)
    harness.generate(prompt(1, 1000), 4, OLD)  # no call is announced
    running = harness.submit(prompt(2, 100), 200)
    harness.step(2)
    harness.at(harness.now_s + IDLE_S + 1.0)
    newcomer = harness.submit(prompt(3, 900), 200, NEW)
    harness.step(8)
    assert list(working_set.members) == ["new"]
    assert not working_set.has_room(1000, harness.now_s)
    again = harness.submit(prompt(1, 600), 4, OLD)
    harness.step(8)
    assert again in harness.finished
    assert newcomer not in harness.finished
    assert "old" in working_set
    harness.run(newcomer, running)


def test_members_are_looked_through_only_once_one_may_have_been_silent_for_long_enough(
    taken, queued, monkeypatch
):
    """A refused newcomer asks at every attempt, and there may be thousands of members."""
    running, newcomer = queued
    applications, looked_at = taken.planner.applications, []
    agents_in = applications.agents_in

    def noting(application: str):
        looked_at.append(application)
        return agents_in(application)

    monkeypatch.setattr(applications, "agents_in", noting)

    refused = taken.planner.log.counts["defer.working_set"]
    chat = taken.submit(prompt(5, 20), 2)
    taken.step(6)
    assert chat in taken.finished
    assert taken.planner.log.counts["defer.working_set"] > refused
    assert looked_at == []
    taken.run(running, newcomer)


def test_a_member_that_is_in_a_call_stays_however_long(taken, monkeypatch):
    working_set = taken.planner.applications.working_set
    monkeypatch.setattr(working_set, "device_tokens", 600)
    running = taken.submit(prompt(2, 100), 200)
    taken.step(2)
    taken.at(taken.now_s + 2 * IDLE_S)  # of a call of five minutes
    newcomer = taken.submit(prompt(3, 900), 4, NEW)
    taken.step(6)
    assert waiting(taken) == [newcomer]
    assert OLD.application in working_set.members
    taken.run(running, newcomer)


def test_a_member_that_was_not_silent_for_long_enough_makes_room_as_soon_as_it_was(
    harness, monkeypatch
):
    monkeypatch.setattr(harness.planner.applications.working_set, "device_tokens", 1200)
    harness.generate(prompt(1, 1000), 4, OLD)
    running = harness.submit(prompt(2, 100), 300)
    harness.step(2)
    harness.at(harness.now_s + IDLE_S - 5.0)
    newcomer = harness.submit(prompt(3, 900), 4, NEW)
    harness.step(6)
    assert waiting(harness) == [newcomer]
    harness.at(harness.now_s + 6.0)
    harness.submit(prompt(4, 20), 2)
    harness.step(8)
    assert newcomer in harness.finished
    harness.run(running)


def test_the_more_turns_it_took_the_longer_silence_keeps_its_part(harness, monkeypatch):
    monkeypatch.setattr(harness.planner.applications.working_set, "device_tokens", 1500)
    for _ in range(3):
        harness.generate(prompt(1, 1500), 4, OLD)
    harness.at(harness.now_s + 2 * IDLE_S)
    running = harness.submit(prompt(2, 100), 300)
    harness.step(2)
    newcomer = harness.submit(prompt(3, 1400), 4, NEW)
    harness.step(8)
    assert waiting(harness) == [newcomer]
    harness.at(harness.now_s + IDLE_S + 1.0)
    harness.submit(prompt(4, 20), 2)  # an attempt in vain is not repeated for nothing
    harness.step(8)
    assert newcomer in harness.finished
    harness.run(running)


def test_a_forgotten_application_is_a_newcomer_again(harness):
    harness.generate(prompt(1, 1500), 4, OLD)
    working_set = harness.planner.applications.working_set
    working_set.pause("old")
    assert working_set.has_entered("old")
    harness.send(ApplicationFinish(application="old"))
    harness.step()
    assert not working_set.has_entered("old")


def test_a_finished_application_leaves_nothing_behind(taken):
    applications = taken.planner.applications
    taken.send(AgentFinish(agent=OLD.agent, application=OLD.application))
    taken.step()
    assert len(applications.working_set.members) == 0
    assert applications._running == {}
    assert applications._ended == set()


def test_a_newcomer_that_is_said_to_have_finished_keeps_its_turn_to_enter(taken, queued):
    """Its request is queued all the same, and must not wait behind everybody that comes later."""
    running, newcomer = queued
    taken.send(AgentFinish(agent=NEW.agent, application=NEW.application))
    taken.at(taken.now_s + 2 * turn_to_enter_s(0.0, 900))
    younger = taken.submit(prompt(6, 20), 2, AgentTag(agent="y", application="younger"))
    taken.step(2)
    assert waiting(taken) == [newcomer, younger]
    taken.run(running, newcomer, younger)


def test_a_member_that_is_said_to_have_finished_takes_part_until_its_last_request_is_over(taken):
    running = taken.submit(prompt(2, 100), 20, OLD)
    taken.step(2)
    taken.send(ApplicationFinish(application=OLD.application))
    taken.step(2)
    applications = taken.planner.applications
    member = applications.working_set.members["old"]
    assert member.running_tokens >= 100
    taken.run(running)
    taken.step(2)
    assert "old" not in applications.working_set.members
    assert applications._accounts == applications._running == applications.turns._open == {}


def test_what_still_runs_counts_when_another_request_of_the_application_has_ended(harness):
    """The event log's numbers of requests are not SGLang's."""
    long = harness.submit(prompt(1, 900), 60, OLD)
    second = AgentTag(agent="second", application="old")
    short = harness.submit(prompt(2, 100), 2, second)
    harness.step(6)
    assert short in harness.finished
    assert long not in harness.finished
    member = harness.planner.applications.working_set.members["old"]
    assert member.running_tokens >= 900
    assert not member.waits
    harness.abort(long)
    harness.step(3)
    assert member.running_tokens == 0


def test_siblings_demand_their_common_prefix_once(harness):
    """What two of them hold on the device is the prefix and what each has of its own."""
    common = prompt(1, 800)
    harness.generate(common, 2, OLD)
    siblings = [
        harness.submit(common + prompt(seed, 50), 60, AgentTag(agent=f"s{seed}", application="old"))
        for seed in (2, 3)
    ]
    harness.step(6)
    member = harness.planner.applications.working_set.members["old"]
    assert 900 <= member.running_tokens <= 1100  # each alone holds 850 and more
    harness.run(*siblings)


def test_a_crowd_of_one_application_comes_and_goes_in_no_time(harness):
    """Each of them once looked through all others: of so many, for seconds."""
    for number in range(10_000):
        tag = AgentTag(agent=f"a{number}", application="crowd")
        harness.send(RequestBegin(rid=f"crowd-{number}", tag=tag))
        harness.send(RequestEnd(rid=f"crowd-{number}"))
    began_s = time.process_time()
    harness.step(2)
    assert time.process_time() - began_s < 3.0
    harness.send(ApplicationFinish(application="crowd"))
    began_s = time.process_time()
    harness.step()
    assert time.process_time() - began_s < 0.5
