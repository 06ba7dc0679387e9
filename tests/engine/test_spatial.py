"""Reserved partitions on a real scheduler: pins, quotas, admission, the release valve."""

from types import SimpleNamespace

import pytest

from tests.engine.conftest import KV_TOKENS
from tests.engine.scenarios import PATH_TOKENS, fill_pool, prompt, start_call, tiers
from tokencake_sglang.agents.events import AgentFinish
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.config import TokencakeConfig
from tokencake_sglang.engine.spatial import SpatialExecutor
from tokencake_sglang.observability.decisions import DecisionLog

RESERVE_TOKENS = KV_TOKENS // 2
CRITICAL = AgentTag(agent="reviewer", application="app", critical=True)


def turn(harness, tag, seed=1, tokens=600):
    ids = prompt(seed, tokens)
    return ids + harness.generate(ids, 16, tag)


def soon_back(harness) -> None:
    """A critical agent whose KV is on the host and whose call is about to end."""
    turn(harness, CRITICAL, tokens=900)
    start_call(harness, CRITICAL, 3.0)
    harness.planner.spatial.drop_one_pin(harness.now_s, "test")
    harness.settle()
    harness.cache.release(harness.planner.residents[CRITICAL.key].leaf_id)
    assert tiers(harness, CRITICAL)[0] == 0


def test_a_critical_agents_prefix_survives_pressure(harness):
    turn(harness, CRITICAL)
    fill_pool(harness, requests=4)
    assert tiers(harness, CRITICAL) == (PATH_TOKENS, 0)


def test_an_ordinary_agents_prefix_does_not(harness):
    ordinary = AgentTag(agent="helper", application="app")
    turn(harness, ordinary)
    fill_pool(harness, requests=4)
    assert tiers(harness, ordinary)[0] == 0


def test_a_stalled_critical_agent_is_not_released(harness):
    turn(harness, CRITICAL)
    start_call(harness, CRITICAL, 500.0)
    fill_pool(harness, requests=3)
    assert harness.decisions("release") == []


def test_pins_of_one_partition_stay_within_its_quota(harness):
    tags = [AgentTag(agent=f"r{i}", application="app", critical=True) for i in range(3)]
    for i, tag in enumerate(tags):
        turn(harness, tag, seed=20 + i, tokens=450)
        pinned = harness.planner.spatial.snapshot()["pinned_tokens"]
        assert pinned <= 0.9 * RESERVE_TOKENS
    assert harness.decisions("unpin") == [("r0", "quota"), ("r1", "quota")]


def test_of_pins_that_share_a_quota_the_one_used_last_gives_way(harness):
    tags = [AgentTag(agent=f"r{i}", application="app", critical=True) for i in range(3)]
    for tag, call_s, seed in zip(tags, (20.0, 300.0), (23, 24), strict=False):
        turn(harness, tag, seed, tokens=350)
        start_call(harness, tag, call_s)
    turn(harness, tags[2], seed=25, tokens=350)
    assert harness.decisions("unpin") == [("r1", "quota")]


def test_the_pin_that_is_used_last_lets_go_first(harness):
    tags = [AgentTag(agent=f"r{i}", application="app", critical=True) for i in range(3)]
    for tag, call_s, seed in zip(tags, (20.0, 300.0, 100.0), (23, 24, 25), strict=True):
        turn(harness, tag, seed, tokens=200)
        start_call(harness, tag, call_s)
    while harness.planner.spatial.drop_one_pin(harness.now_s, "test"):
        pass
    assert [agent for agent, _ in harness.decisions("unpin")] == ["r1", "r2", "r0"]


def test_a_type_with_a_quota_has_its_own_partition(harness):
    small = AgentTag(agent="s", application="app", agent_type="small", critical=True)
    turn(harness, small, seed=30, tokens=80)
    turn(harness, CRITICAL, seed=31)
    assert harness.cache.pin_count == 2
    bigger = AgentTag(agent="b", application="app", agent_type="small", critical=True)
    turn(harness, bigger, seed=32, tokens=200)
    assert ("b", "exceeds_quota") in harness.decisions("pin")
    assert harness.cache.pin_count == 2


def critical(agent: str, tenant: str | None, agent_type: str = "default") -> AgentTag:
    application = f"of {tenant}"
    return AgentTag(
        agent=agent, application=application, agent_type=agent_type, critical=True, tenant=tenant
    )


def test_pins_of_one_tenant_stay_within_its_quota_whatever_their_partition(harness):
    """Half of the reserve, 512 tokens; what others have pinned does not count."""
    turn(harness, critical("other", "other"), seed=33, tokens=100)
    turn(harness, critical("small", "half", "small"), seed=34, tokens=70)
    turn(harness, critical("h0", "half"), seed=35, tokens=200)
    assert harness.decisions("unpin") == []
    start_call(harness, critical("h0", "half"), 300.0)  # nothing of the application is open
    turn(harness, critical("h1", "half"), seed=36, tokens=280)
    assert harness.decisions("unpin") == [("h0", "tenant_quota")]
    turn(harness, critical("h2", "half"), seed=37, tokens=200)
    assert harness.decisions("unpin")[1:] == [("small", "tenant_quota")]
    assert harness.cache.pin_count == 3


def test_a_pin_counts_for_the_tenant_of_its_latest_turn(harness):
    moved = AgentTag(agent="m", application="moves", critical=True, tenant="half")
    turn(harness, moved, seed=41, tokens=300)
    start_call(harness, moved, 300.0)  # nothing of the application is open
    turn(harness, AgentTag(agent="m", application="moves", critical=True), seed=42, tokens=300)
    turn(harness, critical("h", "half"), seed=43, tokens=300)
    assert harness.decisions("unpin") == []
    assert harness.cache.pin_count == 2


def test_a_path_larger_than_its_tenants_quota_is_not_pinned(harness):
    turn(harness, critical("h", "half"), seed=38, tokens=400)
    assert harness.cache.pin_count == 1
    turn(harness, critical("h", "half"), seed=39, tokens=520)
    assert harness.decisions("pin")[-1] == ("h", "exceeds_tenant_quota")
    assert harness.decisions("unpin") == [("h", "outgrew_tenant_quota")]
    turn(harness, critical("o", "other"), seed=40, tokens=520)
    assert harness.decisions("pin")[-1] == ("o", "critical")
    assert harness.cache.pin_count == 1


def test_a_shared_prefix_counts_once_against_the_quota(harness):
    shared = prompt(40, 500)
    for name in ("r0", "r1", "r2"):
        tag = AgentTag(agent=name, application="app", critical=True)
        harness.generate(shared + prompt(hash(name) % 1000, 20), 4, tag)
    assert harness.planner.spatial.snapshot()["pinned_agents"] == 3
    assert harness.decisions("unpin") == []


def test_a_finished_agents_pin_is_dropped(harness):
    turn(harness, CRITICAL)
    harness.send(AgentFinish(agent=CRITICAL.agent, application=CRITICAL.application))
    harness.step()
    assert harness.cache.pin_count == 0


def test_admission_leaves_the_reserve_to_critical_agents(harness):
    soon_back(harness)
    running = harness.submit(prompt(50, 500), 300)
    harness.step(2)
    waiting = harness.submit(prompt(51, 500), 4)
    harness.step(5)
    assert [req.rid for req in harness.scheduler.waiting_queue] == [waiting]
    assert harness.planner.log.counts["defer.reserve_untagged"] > 0
    critical = harness.submit(prompt(52, 500), 4, CRITICAL)
    harness.run(critical, limit=10)
    assert running not in harness.finished, "it waited although memory was reserved for it"
    harness.run(running, waiting)


def test_a_smaller_request_does_not_overtake_a_deferred_one(harness):
    soon_back(harness)
    running = harness.submit(prompt(50, 500), 300)
    harness.step(2)
    deferred = harness.submit(prompt(51, 1000), 4)
    smaller = harness.submit(prompt(53, 20), 4)
    critical = harness.submit(prompt(52, 500), 100, CRITICAL)
    harness.step(2)
    queue = [req.rid for req in harness.scheduler.waiting_queue]
    assert queue == [deferred, smaller]
    harness.run(running, deferred, smaller, critical)


def test_the_reserve_is_lent_while_no_critical_agent_is_expected(harness):
    turn(harness, CRITICAL, tokens=50)
    start_call(harness, CRITICAL, 500.0)
    running = harness.submit(prompt(50, 500), 200)
    harness.step(2)
    second = harness.submit(prompt(51, 500), 4)
    harness.run(second)
    assert running not in harness.finished
    harness.run(running)


def test_whoever_is_alone_may_have_the_whole_pool(harness):
    soon_back(harness)
    rid = harness.submit(prompt(60, 1800), 4)
    harness.run(rid, limit=50)


def test_the_pin_of_an_agent_that_nobody_expects_is_dropped(harness):
    turn(harness, CRITICAL)
    harness.at(harness.now_s + 60.0)
    harness.step()
    assert harness.decisions("unpin") == [("reviewer", "idle")]


def test_the_pin_of_a_stalled_agent_stays(harness):
    turn(harness, CRITICAL)
    start_call(harness, CRITICAL, 300.0)
    harness.at(harness.now_s + 60.0)
    harness.step()
    assert harness.decisions("unpin") == []


def test_pins_let_go_when_the_queue_would_starve(harness):
    turn(harness, CRITICAL, tokens=700)
    rid = harness.submit(prompt(61, 1700), 8)
    harness.run(rid, limit=100)
    assert ("reviewer", "starvation") in harness.decisions("unpin")


def test_pins_let_go_when_running_requests_could_not_grow(harness, monkeypatch):
    turn(harness, CRITICAL, tokens=880)
    rid = harness.submit(prompt(65, 100), 20)
    harness.step(3)
    assert harness.decisions("unpin") == []
    # As if a step could take more than is left beside the pin.
    monkeypatch.setattr("tokencake_sglang.engine.rank.DECODE_STEP_TOKENS", 600)
    harness.step()
    assert harness.decisions("unpin") == [("reviewer", "headroom")]
    harness.run(rid)


def test_a_request_that_comes_reopens_admission(harness):
    """SGLang would wait until a running request has ended: it has found the memory full."""
    older = AgentTag(agent="o", application="older")
    running = harness.submit(prompt(80, 900), 100, older)
    harness.step(2)
    large = harness.submit(prompt(81, 1500), 2, AgentTag(agent="n", application="newer"))
    harness.step(2)
    small = harness.submit(prompt(82, 50), 2, older)
    harness.step(6)
    assert small in harness.finished
    assert running not in harness.finished
    harness.run(running, large, small)


def test_memory_that_becomes_evictable_reopens_admission(harness):
    """As when the copy of an ended request's KV is done: nothing ends at that moment."""
    older = AgentTag(agent="o", application="older")
    turn(harness, older, seed=83, tokens=900)
    harness.cache.pin("copy", harness.planner.residents[older.key].leaf_id)
    running = harness.submit(prompt(84, 300), 100, older)
    harness.step(2)
    waiting = harness.submit(prompt(85, 1000), 2, AgentTag(agent="n", application="newer"))
    harness.step(4)
    assert [req.rid for req in harness.scheduler.waiting_queue] == [waiting]
    harness.cache.unpin("copy")
    harness.step(6)
    assert waiting in harness.finished
    assert running not in harness.finished
    harness.run(running)


def test_older_applications_go_first_and_critical_agents_within_them(harness):
    blocker = harness.submit(prompt(70, 1500), 40)
    harness.step(2)
    newer = AgentTag(agent="n", application="newer")
    older = AgentTag(agent="o", application="older")
    rids = {}
    rids["older-1"] = harness.submit(prompt(72, 600), 2, older)
    rids["newer"] = harness.submit(prompt(73, 600), 2, newer)
    rids["older-2"] = harness.submit(prompt(74, 600), 2, older)
    critical = AgentTag(agent="c", application="older", critical=True)
    rids["critical"] = harness.submit(prompt(75, 600), 2, critical)
    harness.step(1)
    queue = [req.rid for req in harness.scheduler.waiting_queue]
    assert queue == [rids[name] for name in ("critical", "older-1", "older-2", "newer")]
    harness.run(blocker, *rids.values())


@pytest.mark.parametrize("tagged", [False, True])
def test_tags_do_not_split_the_cache(harness, tagged):
    ids = prompt(80)
    harness.generate(ids, 4, AgentTag(agent="one", application="a"))
    rid = harness.submit(ids, 4, AgentTag(agent="two", application="b") if tagged else None)
    harness.run(rid)
    assert harness.cached_tokens[rid] == len(ids) - 1


def test_quotas_of_no_reserve_are_said_to_reserve_nothing(caplog):
    caplog.set_level("WARNING")  # a scheduler in this process has made it quieter
    config = TokencakeConfig(quotas={"reviewer": 0.5})
    SpatialExecutor(config, SimpleNamespace(), lambda req: None, DecisionLog(), pool_tokens=100)
    assert "{'reviewer': 0.5} are parts of a reserve of 0" in caplog.text


@pytest.mark.parametrize("off", [{"spatial": "off"}, {"without": ("order",)}])
@pytest.mark.parametrize(
    "rule", [{"tenants": {"a": 2.0}}, {"untagged_weight": 2.0}, {"untagged_first_token_s": 1.0}]
)
def test_rules_for_an_order_that_is_off_are_said_to_be_none(caplog, off, rule):
    caplog.set_level("WARNING")
    for config in (TokencakeConfig(**rule), TokencakeConfig(**rule, **off)):
        assert "rules for the queue's order" not in caplog.text
        SpatialExecutor(config, SimpleNamespace(), lambda req: None, DecisionLog(), pool_tokens=100)
    assert "rules for the queue's order" in caplog.text


@pytest.mark.parametrize("off", [{"spatial": "off"}, {"without": ("working-set",)}])
def test_quotas_of_tenants_in_no_working_set_are_said_to_be_none(caplog, off):
    caplog.set_level("WARNING")
    quotas = {"tenant_quotas": {"a": 0.5}}
    for config in (TokencakeConfig(**off), TokencakeConfig(**quotas)):
        SpatialExecutor(config, SimpleNamespace(), lambda req: None, DecisionLog(), pool_tokens=100)
        assert "tenant_quotas" not in caplog.text
    config = TokencakeConfig(**quotas, **off)
    SpatialExecutor(config, SimpleNamespace(), lambda req: None, DecisionLog(), pool_tokens=100)
    assert "tenant_quotas {'a': 0.5} bound" in caplog.text
