"""Demands of applications, and who may enter the set that takes part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.spatial.working_set import PRIOR_S, WorkingSet


def working_set(device_tokens: int = 100_000, kept_tokens: int = 10**9) -> WorkingSet:
    return WorkingSet(device_tokens, kept_tokens)


def test_a_demand_is_what_runs_on_average_after_a_prior():
    """(1,000 x 60 s + 4,000 x 30 s) / (60 s + 30 s running + 50 s in a call) = 1,285.7 tokens."""
    found = working_set()
    found.enter("app", 1_000, now_s=0.0)
    found.update("app", 0.0, running_tokens=4_000, waits=False)
    found.update("app", 30.0, running_tokens=0, waits=False)
    assert PRIOR_S == 60.0
    assert found.demand_tokens(80.0) == pytest.approx(180_000 / 140)


def test_waiting_for_admission_is_no_sign_of_small_demand():
    found = working_set()
    found.enter("app", 1_000, now_s=0.0)
    found.update("app", 0.0, running_tokens=0, waits=True)
    assert found.demand_tokens(1e6) == 1_000


def test_a_newcomer_enters_while_demands_fit_the_device():
    found = working_set(device_tokens=10_000)
    found.enter("old", 6_000, now_s=0.0)
    assert found.has_room(4_000, now_s=0.0)
    assert not found.has_room(4_001, now_s=0.0)
    # Half a minute later the old one has been idle for a third of the time known of it.
    assert found.has_room(6_000, now_s=30.0)


def test_a_newcomer_waits_for_room_on_the_host():
    found = working_set(kept_tokens=50_000)
    found.enter("old", 100, now_s=0.0)
    found.grow("old", 49_000)
    assert found.has_room(1_000, now_s=0.0)
    assert not found.has_room(1_001, now_s=0.0)
    found.leave("old")
    assert found.has_room(10**6, now_s=0.0), "an empty set takes anybody"


def test_a_newcomer_waits_for_room_in_its_tenants_quota():
    found = WorkingSet(10_000, 50_000, quotas={"half": 0.5})
    found.enter("other", 4_000, now_s=0.0, tenant="other")
    found.enter("old", 2_000, now_s=0.0, tenant="half")
    assert found.within_quota("half", 3_000, now_s=0.0)
    assert not found.within_quota("half", 3_001, now_s=0.0)
    assert found.has_room(4_000, now_s=0.0), "the pool has room for it"
    assert found.within_quota("other", 10**6, now_s=0.0), "it has no quota"
    # Half a minute later the old one has been idle for a third of the time known of it.
    assert found.within_quota("half", 3_600, now_s=30.0)
    found.grow("old", 24_000)
    assert found.within_quota("half", 1_000, now_s=30.0)
    assert not found.within_quota("half", 1_001, now_s=30.0)
    found.leave("old")
    assert found.within_quota("half", 10**6, now_s=30.0), "a tenant may always have one"


TENANTS = {"a": 0.5, "b": 0.2, "c": None}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "run", "leave"]),
        st.sampled_from(sorted(TENANTS)),
        st.integers(0, 6),  # of the tenant's applications
        st.integers(1, 4_000),  # tokens
        st.floats(0.0, 100.0),  # seconds that pass
    ),
    max_size=40,
)


@given(STEPS)
def test_a_tenants_demand_at_an_entry_never_passes_its_quota_unless_it_was_alone(steps):
    quotas = {tenant: quota for tenant, quota in TENANTS.items() if quota is not None}
    found, now_s = WorkingSet(10_000, 20_000, quotas=quotas), 0.0
    for what, tenant, number, tokens, passed_s in steps:
        now_s += passed_s
        application = f"{tenant}{number}"
        if what == "run":
            found.update(application, now_s, running_tokens=tokens, waits=False)
            found.grow(application, tokens)
        elif what == "leave":
            found.leave(application)
        elif application not in found and (
            found.within_quota(tenant, tokens, now_s) and found.has_room(tokens, now_s)
        ):
            found.enter(application, tokens, now_s, tenant)
            own = [member for name, member in found.members.items() if name.startswith(tenant)]
            part = TENANTS[tenant] or 1.0
            if len(own) > 1:
                assert sum(m.demand_tokens(now_s) for m in own) <= part * 10_000 + 1e-6
                assert sum(m.footprint_tokens for m in own) <= part * 20_000
            if len(found.members) > 1:
                assert found.demand_tokens(now_s) <= 10_000 + 1e-6


@given(STEPS, st.sampled_from("ab"), st.integers(1, 8_000))
def test_what_others_have_changes_nothing_about_a_tenants_quota(steps, tenant, prompt_tokens):
    alone = WorkingSet(10_000, 20_000, quotas={"a": 0.5, "b": 0.2})
    among_others = WorkingSet(10_000, 20_000, quotas={"a": 0.5, "b": 0.2})
    for _, whose, number, tokens, _ in steps:
        for found in (alone, among_others):
            if found is among_others or whose == tenant:
                found.enter(f"{whose}{number}", tokens, 0.0, whose)
    answers = {found.within_quota(tenant, prompt_tokens, 9.0) for found in (alone, among_others)}
    assert len(answers) == 1


def test_who_takes_no_part_has_no_demand():
    found = working_set()
    found.update("stranger", 0.0, running_tokens=5_000, waits=False)
    found.grow("stranger", 5_000)
    assert "stranger" not in found
    assert found.demand_tokens(10.0) == 0.0


@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.booleans(), st.floats(0.0, 100.0)), max_size=20),
    st.lists(st.integers(0, 20), max_size=10),
)
def test_asking_changes_nothing(changes, asked_after):
    """Ranks may be asked at different times and must stay alike to the last bit."""
    silent, asked = working_set(), working_set()
    now_s = 0.0
    for each in (silent, asked):
        each.enter("app", 1_000, 0.0)
    for place, (tokens, waits, passed_s) in enumerate(changes):
        now_s += passed_s
        for each in (silent, asked):
            each.update("app", now_s, running_tokens=tokens, waits=waits)
        if place in asked_after:
            asked.demand_tokens(now_s + 7.0)
    assert asked == silent


@given(st.lists(st.tuples(st.integers(0, 5_000), st.floats(0.0, 100.0)), max_size=20))
def test_a_demand_lies_between_the_least_and_the_most_that_ran(changes):
    found = working_set()
    found.enter("app", 1_000, 0.0)
    now_s = 0.0
    for tokens, passed_s in changes:
        now_s += passed_s
        found.update("app", now_s, running_tokens=tokens, waits=False)
    ran = [1_000, 0, *(tokens for tokens, _ in changes)]
    assert min(ran) - 1e-6 <= found.demand_tokens(now_s + 10.0) <= max(ran) + 1e-6
