from collections import Counter

import pytest

from benchmarks.workloads import agentinfer_swebench
from tokencake_sglang.replay import tokens
from tokencake_sglang.replay.closed_loop import schedule

RECORDS = agentinfer_swebench.records()
WORKLOAD = agentinfer_swebench.load()


def test_counts_are_those_of_the_readme() -> None:
    roles = Counter(record.actor_role for record in RECORDS)
    actors = {record.actor: record.actor_role for record in RECORDS}
    assert len(RECORDS) == 597
    assert len({record.session_id for record in RECORDS}) == 8
    assert roles == {"lead": 236, "subagent": 361}
    assert Counter(actors.values()) == {"lead": 8, "subagent": 24}


def test_all_but_the_failed_request_are_replayed() -> None:
    assert len(WORKLOAD.requests) == 596
    assert len(WORKLOAD.applications) == 8
    assert len({(r.application, r.agent) for r in WORKLOAD.requests}) == 32
    assert WORKLOAD.prompt_tokens == sum(r.input_tokens or 0 for r in RECORDS)
    assert WORKLOAD.output_tokens == sum(r.output_tokens or 0 for r in RECORDS)


def test_recorded_server_times_give_the_recorded_times_back() -> None:
    """Every dispatch of the 2,076 s, sub-agents and joins included, to the microsecond."""
    usable = [record for record in RECORDS if record.input_tokens is not None]
    begin = usable[0].started_at
    counter: Counter[tuple[str, str]] = Counter()
    started, service = {}, {}
    for record in usable:
        name = f"{record.session_id}/{record.actor_id}/{counter[record.actor]}"
        counter[record.actor] += 1
        started[name] = (record.started_at - begin).total_seconds()
        service[name] = (record.finished_at - record.started_at).total_seconds()
    run = schedule(WORKLOAD, lambda request: service[request.request_id])
    assert run.dispatched_s == pytest.approx(started, abs=2e-4)
    assert run.makespan_s == pytest.approx(2076, abs=1)
    assert run.most_running <= 8


def test_a_lead_waits_for_its_subagents() -> None:
    awaited = [
        WORKLOAD.by_id[name]
        for request in WORKLOAD.requests
        if request.call
        for name in request.call.until
    ]
    assert len(awaited) == 24
    assert all(request.agent_type == "subagent" for request in awaited)
    spawned = [request for request in WORKLOAD.requests if request.spawned_by]
    assert len(spawned) == 24
    assert all(request.delay_s < 0.1 for request in spawned)


def test_tool_gaps_are_mostly_too_short_to_use() -> None:
    waits = sorted(r.call.wait_s for r in WORKLOAD.requests if r.call and not r.call.until)
    assert waits[len(waits) // 2] == pytest.approx(0.103, abs=0.003)
    assert waits[int(0.75 * len(waits))] < 0.2


def test_prompts_are_appended_to() -> None:
    """The one other is a title call of 352 tokens after a prompt of 59,952."""
    kinds: Counter[str] = Counter()
    for request in WORKLOAD.requests:
        for name in request.wait_for:
            before = WORKLOAD.by_id[name]
            shared = tokens.common_prefix((*before.prompt, *before.output), request.prompt)
            whole = before.prompt_length + before.output_length
            if shared == whole:
                kinds["prompt and output"] += 1
            elif shared == before.prompt_length:
                kinds["prompt"] += 1
            else:
                kinds["other"] += 1
    assert kinds == {"prompt and output": 548, "prompt": 7, "other": 1}


def test_heads_are_shared_between_sessions() -> None:
    firsts = [
        next(r for r in requests if r.agent == "lead" and r.prompt_length > 19_469)
        for requests in WORKLOAD.applications.values()
    ]
    assert {tokens.common_prefix(firsts[0].prompt, f.prompt) for f in firsts[1:]} == {19_469}
