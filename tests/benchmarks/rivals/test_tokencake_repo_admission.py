"""The released code's admission, worked by hand, and what its policies make of it."""

import json

import pytest

from benchmarks.rivals.tokencake_repo import Both, OffloadOnly, SchedulingOnly
from benchmarks.rivals.tokencake_repo.admission import Capacity, Waiting, admitted, ordered
from benchmarks.rivals.tokencake_repo.graph import UNDECLARED, declared
from benchmarks.rivals.tokencake_repo.scheduling import Scheduling
from benchmarks.workloads import tokencake_dags
from tests.benchmarks.rivals.views import MACHINE, FixedView, agent, request
from tokencake_sglang.policy import Policy
from tokencake_sglang.replay.workflow import workflow_of


def waiting(rid, tokens=1000, score=0, *, kind="x", held=0, own=None, queued_s=0.0):
    return Waiting(rid, kind, score, score if own is None else own, queued_s, tokens, held)


def capacity(uncommitted=10_000, shared=10_000, reserved=None, best=None):
    reserved = reserved or {}
    return Capacity(uncommitted, shared, reserved, dict.fromkeys(reserved, 1.0), best or {})


def test_a_request_is_admitted_when_all_it_may_take_fits():
    order = [waiting("a", 6000), waiting("b", 4001), waiting("c", 4000)]
    assert list(admitted(order, capacity())) == ["a", "c"], "a smaller one passes"
    order = [waiting("a", 6000), waiting("b", 9000, held=5000)]
    assert list(admitted(order, capacity())) == ["a", "b"], "what runs already holds is free"


def test_what_admitted_requests_have_yet_to_take_is_committed():
    scheduling = Scheduling(MACHINE, lambda _rid: UNDECLARED)
    running = request("r", tokens=1000, output=400)
    running.tokens = 1100
    view = FixedView(free_tokens=5000, evictable_tokens=2000, running=[running])
    scheduling.begin_step(view)
    assert scheduling.uncommitted == 7000 - 300


def test_a_critical_type_pays_from_the_shared_part_first_and_then_from_its_own():
    there = capacity(shared=600, reserved={"x": 500})
    assert there.charges(waiting("a")) == [(None, 600), ("x", 400)]
    assert there.charges(waiting("a", 1101)) is None


def test_a_reserve_is_borrowed_early_with_a_lead_of_500_points():
    there = capacity(shared=600, reserved={"y": 500}, best={"y": 2000})
    assert there.charges(waiting("a", score=2499)) is None
    assert there.charges(waiting("a", score=2500)) == [(None, 600), ("y", 400)]
    assert there.charges(waiting("a"), borrow=True) == [(None, 600), ("y", 400)]
    there.waiting_best = {}
    assert there.charges(waiting("a")) == [(None, 600), ("y", 400)], "nobody of y waits"


def test_an_idle_reserve_is_lent_after_everybody_was_asked():
    there = capacity(2000, shared=600, reserved={"y": 1000}, best={"y": 100})
    order = [waiting("first", 1000, 200), waiting("owner", 900, 100, kind="y")]
    assert list(admitted(order, there)) == ["owner"]
    there = capacity(2000, shared=600, reserved={"y": 1400}, best={"y": 100})
    order = [waiting("first", 1000, 200), waiting("owner", 900, 100, kind="y")]
    assert list(admitted(order, there)) == ["owner", "first"]


def test_capacity_shrinks_the_shared_part_first_and_then_the_least_important():
    there = Capacity.of(
        700, 1000, {"x": 500, "y": 400}, {None: 200, "x": 100}, {"x": 2, "y": 1}, {}
    )
    # 800 shared, 400 and 400 are left of 1,900; 900 more than there is.
    assert (there.shared, there.reserved) == (0, {"x": 400, "y": 300})


def test_within_500_points_held_prefixes_go_first_when_capacity_is_scarce():
    queue = [waiting("a", score=2000), waiting("b", score=1500, held=600), waiting("c", score=1499)]
    assert [w.rid for w in ordered(queue, scarce=False)] == ["a", "b", "c"]
    assert [w.rid for w in ordered(queue, scarce=True)] == ["b", "a", "c"]
    queue[2] = waiting("c", score=1499, held=900)
    assert [w.rid for w in ordered(queue, scarce=True)] == ["b", "a", "c"], "out of the band"
    queue[1] = waiting("b", score=1500, held=400)
    assert [w.rid for w in ordered(queue, scarce=True)] == ["a", "b", "c"], "less than it takes"


def test_an_inherited_score_is_followed_by_ones_own():
    queue = [waiting("a", score=9, own=1), waiting("b", score=9, own=2), waiting("c", score=8)]
    assert [w.rid for w in ordered(queue, scarce=False)] == ["b", "a", "c"]


def test_what_is_declared_is_what_the_authors_file_says():
    source = json.loads(tokencake_dags.DATA.read_text())["code_writer"]["nodes"]
    found = declared(workflow_of(tokencake_dags.load("code_writer")))
    groups = set()
    for node in source:
        if not node["max_tokens"]:
            continue
        ours = found[f"code_writer/{node['name']}"]
        assert ours.critical == node["critical_path"], node["name"]
        assert ours.near_completion == node["near_completion"], node["name"]
        assert ours.offload_eligible == node["offload_eligible"], node["name"]
        groups.add((node["join_group"], ours.join_group))
    assert len(groups) == len({theirs for theirs, _ in groups}) == 4, "the same groups"
    repair = found["code_writer/programmer_1_repair"]
    assert (repair.importance, repair.depth, repair.max_depth) == (10, 10, 17)
    assert (repair.in_degree, repair.out_degree, repair.fanout_width) == (1, 1, 3)
    assert repair.similarity == pytest.approx(1 / 3)
    assert found["code_writer/reviewer_2"].out_degree == 3
    assert found["code_writer/test_node"].remaining_depth == 2


def test_members_of_a_join_group_inherit_its_highest_score():
    declarations = declared(workflow_of(tokencake_dags.load("code_writer")))
    scheduling = Scheduling(MACHINE, lambda rid: declarations[rid])
    of = agent("any")
    queue = [
        request("code_writer/programmer_2_repair", of),
        request("code_writer/programmer_1_validate_patch", of),
        request("code_writer/architect_1", of),
    ]
    for each in queue:
        scheduling.queued(each, 0.0)
    view = FixedView(now_s=10.0, free_tokens=48_800, queue=queue)
    scheduling.begin_step(view)
    repair, validate, architect = scheduling._waiting(view)
    assert repair.score == validate.score == max(repair.own_score, validate.own_score)
    assert repair.own_score != validate.own_score
    assert architect.score == architect.own_score


def test_preempted_work_waits_until_somebody_ends():
    scheduling = Scheduling(MACHINE, lambda _rid: UNDECLARED)
    victim, other = request("victim"), request("other")
    for each in (victim, other):
        scheduling.queued(each, 0.0)
        scheduling.was_admitted(each, 0.0)
    view = FixedView(free_tokens=20_000, running=[other])
    scheduling.begin_step(view)
    scheduling.retracted(victim)
    view.queue = [victim]
    scheduling.order(view)
    assert not scheduling.admits(victim)
    scheduling.finished(other, 1.0)
    view.running = [request("third")]
    scheduling.queued(view.running[0], 1.0)
    scheduling.begin_step(view)
    scheduling.order(view)
    assert scheduling.admits(victim)


def test_the_halves_decide_what_is_theirs():
    view = FixedView(free_tokens=100, queue=[request("r", tokens=1000)])
    for policy, schedules in ((Both(MACHINE), True), (SchedulingOnly(MACHINE), True)):
        policy.request_queued(view.queue[0], 0.0)
        list(policy.decide(view))
        policy.order(view)
        assert policy.admits(view.queue[0], view) is not schedules
    alone = OffloadOnly(MACHINE)
    assert alone.order(view) is None
    assert alone.admits(view.queue[0], view)
    assert not any(p.automatic_backup for p in (Both, OffloadOnly, SchedulingOnly))
    assert Policy.automatic_backup
    assert SchedulingOnly(MACHINE).preservation is None
