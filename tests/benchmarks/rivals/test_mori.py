"""MORI's idleness and tiers, worked by hand."""

import dataclasses

import pytest

from benchmarks.rivals.mori import Mori, Tier
from tests.benchmarks.rivals.views import MACHINE, FixedView, agent, request
from tokencake_sglang.policy import EvictionCandidate


def policy(pool_tokens: int, host_tokens: int = 1_000_000) -> Mori:
    return Mori(dataclasses.replace(MACHINE, pool_tokens=pool_tokens, host_tokens=host_tokens))


def turn(
    mori: Mori, program: str, tokens: int, queued_s: float, admitted_s: float, ended_s: float
) -> None:
    sent = request(f"{program}-{queued_s}", agent("a", program), tokens=tokens)
    mori.request_queued(sent, queued_s)
    mori.request_admitted(sent, admitted_s)
    mori.request_finished(sent, ended_s)


def queue(mori: Mori, program: str, tokens: int, now_s: float):
    sent = request(f"{program}-{now_s}", agent("a", program), tokens=tokens)
    mori.request_queued(sent, now_s)
    return sent


def idleness(mori: Mori, program: str, now_s: float) -> float:
    return mori.programs.by_name[program].idleness(now_s)


def test_idleness_is_the_share_of_tools_in_the_last_five_cycles():
    mori = policy(48_800)
    # A cycle of 10 s reasoning and 90 s acting, then four of 1 s and 3 s.
    turn(mori, "p", 1000, 0.0, 0.0, 10.0)
    for start_s in (100.0, 104.0, 108.0, 112.0):
        turn(mori, "p", 1000, start_s, start_s, start_s + 1.0)
    assert idleness(mori, "p", 116.0) == (90 + 4 * 3) / (100 + 4 * 4)
    turn(mori, "p", 1000, 116.0, 116.0, 117.0)  # the sixth: the first is forgotten
    assert idleness(mori, "p", 120.0) == 15 / 20


def test_a_call_under_way_counts_as_far_as_it_has_gone():
    mori = policy(48_800)
    turn(mori, "p", 1000, 0.0, 0.0, 2.0)
    assert [idleness(mori, "p", now_s) for now_s in (2.0, 4.0, 8.0)] == [0.0, 0.5, 0.75]


def test_waiting_for_the_scheduler_is_neither_reasoning_nor_acting():
    mori = policy(48_800)
    turn(mori, "p", 1000, 0.0, 5.0, 6.0)
    queue(mori, "p", 1000, 9.0)
    assert idleness(mori, "p", 9.0) == idleness(mori, "p", 90.0) == 3 / 4


@pytest.fixture
def ranked() -> Mori:
    """Three programs of 10,000 tokens in the device tier, idle 1/5, 1/2 and 4/5 at 10 s."""
    mori = policy(30_300)
    turn(mori, "busy", 10_000, 0.0, 0.0, 8.0)
    turn(mori, "middle", 10_000, 0.0, 0.0, 5.0)
    turn(mori, "idle", 10_000, 0.0, 0.0, 2.0)
    assert [idleness(mori, p, 10.0) for p in ("busy", "middle", "idle")] == [0.2, 0.5, 0.8]
    return mori


def tiers(mori: Mori, *programs: str) -> list[Tier]:
    return [mori.tiers[program] for program in programs]


def test_what_fits_stays(ranked):
    ranked.decide(FixedView(now_s=10.0))  # 3 * (10,000 + 100) tokens
    assert tiers(ranked, "busy", "middle", "idle") == [Tier.DEVICE] * 3


def test_the_idlest_go_to_the_host_until_the_device_fits(ranked):
    ranked.machine = dataclasses.replace(MACHINE, pool_tokens=30_299)
    ranked.demote(10.0)
    assert tiers(ranked, "busy", "middle", "idle") == [Tier.DEVICE, Tier.DEVICE, Tier.HOST]
    ranked.machine = dataclasses.replace(MACHINE, pool_tokens=10_100)
    ranked.demote(10.0)
    assert tiers(ranked, "busy", "middle", "idle") == [Tier.DEVICE, Tier.HOST, Tier.HOST]


def test_what_the_host_cannot_take_waits(ranked):
    ranked.machine = dataclasses.replace(MACHINE, pool_tokens=10_100, host_tokens=10_100)
    ranked.demote(10.0)
    assert tiers(ranked, "busy", "middle", "idle") == [Tier.DEVICE, Tier.WAITING, Tier.HOST]


def test_a_running_program_is_demoted_when_its_turn_ends():
    mori = policy(10_100)
    running = queue(mori, "p", 10_000, 0.0)
    mori.request_admitted(running, 0.0)
    running.tokens = 10_050
    mori.demote(5.0)
    assert mori.tiers["p"] is Tier.DEVICE
    mori.request_finished(running, 6.0)
    assert mori.tiers["p"] is Tier.HOST


def test_only_programs_of_the_device_tier_are_admitted(ranked):
    ranked.machine = dataclasses.replace(MACHINE, pool_tokens=20_200)
    ranked.demote(10.0)
    assert tiers(ranked, "idle") == [Tier.HOST]
    view = FixedView(now_s=10.0)
    assert ranked.admits(queue(ranked, "busy", 10_000, 10.0), view)
    assert not ranked.admits(queue(ranked, "idle", 10_000, 10.0), view)


def test_a_busier_program_takes_the_place_of_an_idler_acting_one(ranked):
    ranked.machine = dataclasses.replace(MACHINE, pool_tokens=10_100)
    ranked.demote(10.0)
    sent = queue(ranked, "middle", 10_000, 10.0)
    ranked.promote(10.0)  # idle 0.5 against the resident's 0.2: not yet
    assert tiers(ranked, "busy", "middle") == [Tier.DEVICE, Tier.HOST]
    ranked.promote(20.0)  # the resident has acted for 12 of 20 s: 0.6
    assert tiers(ranked, "busy", "middle") == [Tier.HOST, Tier.DEVICE]
    assert ranked.admits(sent, FixedView(now_s=20.0))


def test_from_the_host_before_from_waiting_and_the_least_idle_first():
    mori = policy(1_000_000)
    turn(mori, "host, idle", 10_000, 0.0, 0.0, 2.0)
    turn(mori, "host, busy", 10_000, 0.0, 0.0, 8.0)
    turn(mori, "waiting", 10_000, 0.0, 0.0, 9.0)
    keeper = queue(mori, "keeper", 1_000, 9.0)
    mori.request_admitted(keeper, 9.0)
    for program, tier in (
        ("host, idle", Tier.HOST),
        ("host, busy", Tier.HOST),
        ("waiting", Tier.WAITING),
    ):
        queue(mori, program, 10_000, 10.0)
        mori.tiers[program] = tier
    queue(mori, "new", 9_000, 10.0)
    came = []
    for pool_tokens in (11_200, 21_300, 31_400, 40_500):
        mori.machine = dataclasses.replace(MACHINE, pool_tokens=pool_tokens)
        before = {program.name for program in mori.members(Tier.DEVICE)}
        mori.promote(10.0)
        came.append({program.name for program in mori.members(Tier.DEVICE)} - before)
    assert came == [{"host, busy"}, {"host, idle"}, {"waiting"}, {"new"}]


def test_with_an_empty_device_tier_the_first_is_promoted_fit_or_not():
    mori = policy(1_000)
    queue(mori, "p", 5_000, 0.0)
    queue(mori, "q", 6_000, 0.0)
    mori.decide(FixedView(now_s=0.0))
    assert tiers(mori, "p", "q") == [Tier.DEVICE, Tier.WAITING]


def test_the_tiers_evict_in_opposite_orders_what_is_not_theirs_first():
    mori = policy(1_000)
    mori.tiers = {"busy": Tier.DEVICE, "idle": Tier.HOST, "inactive": Tier.WAITING}

    def order(on_device: bool) -> list[str]:
        nodes = {
            name: EvictionCandidate((agent("a", name).key,), 100, 0, 1.0, True, on_device)
            for name in ("busy", "idle", "inactive")
        }
        return sorted(nodes, key=lambda name: mori.eviction_rank(nodes[name]))

    assert order(on_device=True) == ["inactive", "idle", "busy"]
    assert order(on_device=False) == ["inactive", "busy", "idle"]


def test_untagged_requests_pass_and_what_they_hold_is_off_the_capacity(ranked):
    chat = request("chat", tokens=1_000)
    ranked.request_queued(chat, 9.0)
    ranked.request_admitted(chat, 9.0)
    view = FixedView(now_s=10.0, running=[chat])
    assert ranked.admits(chat, view)
    ranked.decide(view)
    assert tiers(ranked, "busy", "middle", "idle") == [Tier.DEVICE, Tier.DEVICE, Tier.HOST]
