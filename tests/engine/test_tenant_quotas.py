"""Tenants with a quota on a real scheduler with a pool of 2,048 tokens."""

import pytest

from tests.engine.scenarios import prompt, start_call
from tokencake_sglang.agents.events import AgentFinish
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.engine.applications import IDLE_S
from tokencake_sglang.spatial.order import turn_to_enter_s


def of(tenant: str | None, application: str, agent: str = "first") -> AgentTag:
    return AgentTag(agent=agent, application=application, tenant=tenant)


FIRST = of("half", "h1")


def waiting(harness) -> list[str]:
    return [req.rid for req in harness.scheduler.waiting_queue]


def deferred(harness) -> tuple[int, int]:
    """How often a newcomer was left outside: for its tenant's quota, and for want of room."""
    counts = harness.planner.log.counts
    return counts["defer.tenant_quota"], counts["defer.working_set"]


@pytest.fixture
def running(harness) -> str:
    """An untagged request that runs, so that nobody is alone, while the first application of the
    tenant ``half`` is in a call: its demand is 700 tokens, and the quota 1,024."""
    harness.generate(prompt(1, 700), 4, FIRST)
    start_call(harness, FIRST, 300.0)
    rid = harness.submit(prompt(2, 100), 300)
    harness.step(2)
    return rid


def test_another_tenant_passes_a_newcomer_over_its_quota(harness, running):
    second = harness.submit(prompt(3, 500), 4, of("half", "h2"))
    other = harness.submit(prompt(4, 600), 4, of("other", "o1"))
    harness.step(8)
    assert other in harness.finished
    assert waiting(harness) == [second]
    quota, room = deferred(harness)
    assert quota > 0
    assert room == 0
    harness.send(AgentFinish(agent=FIRST.agent, application=FIRST.application))
    harness.step(8)
    assert second in harness.finished
    assert running not in harness.finished
    harness.run(running)


def test_without_another_member_a_tenant_may_have_one_of_any_size(harness):
    running = harness.submit(prompt(2, 100), 100)
    harness.step(2)
    large = harness.submit(prompt(3, 1300), 4, FIRST)
    harness.step(8)
    assert large in harness.finished
    assert running not in harness.finished
    harness.run(running)


def test_who_passes_is_admitted_although_the_attempt_had_no_time_for_it(harness, running):
    """A prompt of all that a step takes lies between the newcomer that is refused and the last."""
    second = harness.submit(prompt(3, 500), 4, of("half", "h2"))
    long = harness.submit(prompt(4, 512), 100, of("other", "o1"))
    last = harness.submit(prompt(5, 200), 4, of("other", "o2"))
    harness.step(12)
    assert last in harness.finished
    assert long not in harness.finished
    assert waiting(harness) == [second]
    harness.run(running, long, second)


def test_a_younger_newcomer_of_the_same_tenant_waits_behind(harness, running):
    second = harness.submit(prompt(3, 500), 4, of("half", "h2"))
    harness.at(harness.now_s + turn_to_enter_s(0.0, 500))
    small = harness.submit(prompt(4, 20), 4, of("half", "h3"))
    other = harness.submit(prompt(5, 20), 4, of("other", "o1"))
    harness.step(8)
    assert other in harness.finished
    assert waiting(harness) == [second, small]
    harness.run(running, second, small)


def test_it_enters_when_its_tenants_member_turns_out_to_be_idle_mostly(harness, running):
    second = harness.submit(prompt(3, 500), 4, of("half", "h2"))
    harness.step(8)
    assert waiting(harness) == [second]
    harness.at(harness.now_s + 60.0)
    harness.step(8)
    assert second in harness.finished
    assert running not in harness.finished
    harness.run(running)


def test_an_attempt_in_vain_is_not_repeated(harness, running):
    second = harness.submit(prompt(3, 500), 4, of("half", "h2"))
    harness.step(5)
    before = deferred(harness)
    harness.step(20)
    assert deferred(harness) == before
    harness.run(running, second)


def test_an_attempt_ends_where_only_tenants_over_their_quotas_are_left(harness, running):
    """Each newcomer that is looked at has its prompt matched."""
    rids = [harness.submit(prompt(3 + i, 500), 4, of("half", f"h{2 + i}")) for i in range(5)]
    harness.step(5)
    assert waiting(harness) == rids
    assert deferred(harness) == (1, 0)
    harness.run(running, *rids)


def test_want_of_room_holds_up_everybody_behind(harness, running):
    second = harness.submit(prompt(3, 500), 4, of("half", "h2"))
    large = harness.submit(prompt(4, 1500), 4, of("other", "o1"))
    harness.at(harness.now_s + turn_to_enter_s(0.0, 1500))
    small = harness.submit(prompt(5, 20), 4, of("third", "t1"))
    harness.step(8)
    assert waiting(harness) == [second, large, small]
    assert min(deferred(harness)) > 0
    harness.run(running, second, large, small)


def test_a_members_requests_are_not_bounded(harness, running):
    member = harness.submit(prompt(3, 900), 4, of("half", FIRST.application, "another"))
    harness.step(8)
    assert member in harness.finished
    assert running not in harness.finished
    harness.run(running)


def test_idle_members_of_the_tenant_make_room_and_those_of_others_stay(harness):
    harness.generate(prompt(1, 900), 4, FIRST)  # no call is announced
    harness.generate(prompt(6, 100), 4, of("other", "o1"))
    running = harness.submit(prompt(2, 100), 100)
    harness.step(2)
    harness.at(harness.now_s + IDLE_S + 1.0)
    second = harness.submit(prompt(3, 800), 4, of("half", "h2"))
    harness.step(8)
    assert second in harness.finished
    assert running not in harness.finished
    assert list(harness.planner.applications.working_set.members) == ["o1", "h2"]
    harness.run(running)


def test_whoever_comes_back_from_a_pause_is_not_bounded(harness):
    harness.generate(prompt(1, 900), 4, FIRST)  # no call is announced
    harness.at(harness.now_s + IDLE_S + 1.0)
    second = harness.submit(prompt(3, 800), 100, of("half", "h2"))
    harness.step(4)
    working_set = harness.planner.applications.working_set
    working_set.pause(FIRST.application)
    assert not working_set.within_quota("half", 900, harness.now_s)
    again = harness.submit(prompt(1, 900), 4, FIRST)
    harness.step(8)
    assert again in harness.finished
    assert second not in harness.finished
    harness.run(second)
