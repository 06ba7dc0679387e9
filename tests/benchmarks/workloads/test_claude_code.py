import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.workloads import claude_code, datasets
from benchmarks.workloads.claude_code import Entry, Session
from tokencake_sglang.replay import arrivals, tokens
from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.workload import Request, Workload

SLICE = datasets.SLICES / "weka_claude_code_slice.jsonl.gz"
WHOLE = datasets.WHOLE / "weka_claude_code" / "sessions.jsonl.gz"
whole = pytest.mark.skipif(not WHOLE.exists(), reason=f"{WHOLE} is not here")


@pytest.fixture(scope="module")
def sessions() -> list[Session]:
    return list(claude_code.sessions(SLICE))


@pytest.fixture(scope="module")
def workload() -> Workload:
    return claude_code.load(SLICE)


def agents(session: Session) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    yield "main", session.main
    for subagent in session.subagents:
        yield subagent.agent_id, subagent.requests


def recorded(sessions: list[Session]) -> Iterator[tuple[str, Entry]]:
    for session in sessions:
        for agent, calls in agents(session):
            for index, call in enumerate(calls):
                yield f"{session.id}/{agent}/{index}", call


def block_ids(call: Entry) -> list[int]:
    return [first + i for first, count in call.hash_runs for i in range(count)]


def counts(path: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for session in claude_code.sessions(path):
        found["sessions"] += 1
        found["main"] += len(session.main)
        found["with sub-agents"] += bool(session.subagents)
        for subagent in session.subagents:
            found[subagent.status] += 1
            found["sub"] += len(subagent.requests)
        found["tool_use"] += sum(call.stop == "tool_use" for call in session.calls)
        found["input"] += sum(call.prompt_tokens for call in session.calls)
    return found


def calls_by_kind(of: Workload) -> Counter[str]:
    found: Counter[str] = Counter()
    for request in of.requests:
        if request.call is not None:
            kind = "main" if request.agent == "main" else "sub"
            found[kind] += 1
            found["awaited"] += len(request.call.until)
            found["waits"] += bool(request.call.until)
    return found


def test_the_slice_has_what_its_notice_says() -> None:
    assert counts(SLICE) == {
        "sessions": 48,
        "with sub-agents": 12,
        "main": 3_980,
        "sub": 524,
        "completed": 44,
        "async_launched": 4,
        "tool_use": 4_175,
        "input": 506_622_731,
    }


@whole
def test_the_whole_has_what_its_readme_says() -> None:
    found = counts(WHOLE)
    del found["input"]
    assert found == {
        "sessions": 355,
        "with sub-agents": 12,
        "main": 23_491,
        "sub": 524,
        "completed": 44,
        "async_launched": 4,
        "tool_use": 20_579,
    }


@whole
def test_the_whole_becomes_one_request_a_call_and_one_tool_call_a_tool_gap() -> None:
    everything = claude_code.load(WHOLE)
    assert len(everything.applications) == 355
    assert len(everything.requests) == 24_015
    # The README counts 19,863 and 476 gaps; one more wait for a sub-agent, in trace_0270, ended
    # with a word of the user instead of a tool result.
    assert calls_by_kind(everything) == {
        "main": 19_864,
        "sub": 476,
        "awaited": 44,
        "waits": 27,
    }
    gaps = sorted(
        r.call.wait_s for r in everything.requests if r.call is not None and r.agent != "main"
    )
    assert [gaps[int(p * 475)] for p in (0.5, 0.9, 0.95, 0.99)] == [4, 29, 48, 75]


def test_every_prompt_has_its_recorded_length(sessions: list[Session], workload: Workload) -> None:
    for name, call in recorded(sessions):
        request = workload.by_id[name]
        assert request.prompt_length == call.prompt_tokens
        assert request.output_length == max(call.output_tokens, 1)


def test_prompts_share_exactly_the_blocks_that_the_hash_ids_say(
    sessions: list[Session], workload: Workload
) -> None:
    """Over consecutive calls of every agent, and the first calls of all agents of a session."""
    for session in sessions:
        pairs = [
            pair
            for agent, calls in agents(session)
            for pair in itertools.pairwise(
                (f"{session.id}/{agent}/{i}", call) for i, call in enumerate(calls)
            )
        ]
        firsts = [(f"{session.id}/{agent}/0", calls[0]) for agent, calls in agents(session)]
        for (name, call), (other_name, other) in pairs + list(itertools.combinations(firsts, 2)):
            shared = tokens.common_prefix(
                workload.by_id[name].prompt, workload.by_id[other_name].prompt
            )
            ids, other_ids = block_ids(call), block_ids(other)
            same = next(
                (i for i, (a, b) in enumerate(zip(ids, other_ids, strict=False)) if a != b),
                min(len(ids), len(other_ids)),
            )
            assert shared // 64 == same, (name, other_name)


def test_a_continuation_holds_the_prompt_and_the_output_before_it(
    sessions: list[Session], workload: Workload
) -> None:
    found: Counter[bool] = Counter()
    for session in sessions:
        for agent, calls in agents(session):
            for index, (call, following) in enumerate(itertools.pairwise(calls)):
                ids = block_ids(call)
                extends = block_ids(following)[: len(ids)] == ids
                room = following.prompt_tokens >= call.prompt_tokens + max(call.output_tokens, 1)
                before = workload.by_id[f"{session.id}/{agent}/{index}"]
                after = workload.by_id[f"{session.id}/{agent}/{index + 1}"]
                text = (*before.prompt, *before.output)
                held = tokens.common_prefix(text, after.prompt) == tokens.length(text)
                assert held == (extends and room), before.request_id
                found[held] += 1
    assert found[True] > found[False] > 0


def test_sessions_of_one_product_share_their_head_and_nothing_else(workload: Workload) -> None:
    by_head: dict[str, list[Request]] = {}
    for request in workload.requests:
        if request.request_id.endswith("/main/0"):
            by_head.setdefault(request.prompt[0].segment, []).append(request)
    several = [group for group in by_head.values() if len(group) > 1]
    assert several
    for group in several:
        for a, b in itertools.combinations(group, 2):
            assert tokens.common_prefix(a.prompt, b.prompt) == a.prompt[0].length
            assert a.prompt[0].length % 64 == 0


def test_a_parent_returns_after_its_slowest_subagent(
    sessions: list[Session], workload: Workload
) -> None:
    """With the recorded server times, within the clock's grain of a second a nested call."""
    api_s = {name: call.api_time or 0.0 for name, call in recorded(sessions)}
    run = schedule(workload, lambda request: api_s[request.request_id])
    checked = 0
    for session in sessions:
        for index, (call, following) in enumerate(itertools.pairwise(session.main)):
            parent = workload.by_id[f"{session.id}/main/{index}"]
            if parent.call is None or not parent.call.until:
                continue
            ends = [run.finished_s[name] for name in parent.call.until]
            returns_s = run.dispatched_s[f"{session.id}/main/{index + 1}"]
            assert returns_s >= max(ends)
            nested = max(int(name.rsplit("/", 1)[1]) for name in parent.call.until)
            gap_s = following.t - call.end_s
            assert returns_s - run.finished_s[parent.request_id] == pytest.approx(
                gap_s, abs=2 + nested
            )
            checked += 1
    assert checked == 27


def test_a_parent_goes_on_beside_an_agent_launched_without_waiting(workload: Workload) -> None:
    session = workload.applications["trace_0295"]
    spawners = Counter(r.spawned_by for r in session if r.spawned_by is not None)
    unawaited = [
        name for name in spawners if not (call := workload.by_id[name].call) or not call.until
    ]
    assert sum(spawners[name] for name in unawaited) == 4
    run = schedule(workload, lambda request: 1.0)
    for name in unawaited:
        agent, index = name.rsplit("/", 1)
        following = run.dispatched_s[f"{agent}/{int(index) + 1}"]
        child = next(r for r in session if r.spawned_by == name)
        last = max(run.finished_s[r.request_id] for r in session if r.agent == child.agent)
        assert following < last


def test_pauses_are_not_tool_calls(sessions: list[Session], workload: Workload) -> None:
    session = next(s for s in sessions if s.id == "trace_0001")
    ended = next(i for i, call in enumerate(session.main) if call.stop == "end_turn")
    assert workload.by_id[f"trace_0001/main/{ended}"].call is None
    following = session.main[ended + 1]
    assert workload.by_id[f"trace_0001/main/{ended + 1}"].delay_s == following.think_time
    first = workload.by_id["trace_0001/main/0"].call
    assert first is not None
    assert (first.tool, first.wait_s, first.declared_s) == ("tool", 12.0, None)


def test_sessions_can_be_chosen() -> None:
    assert list(claude_code.load(SLICE, select=["trace_0291"]).applications) == ["trace_0291"]
    with pytest.raises(ValueError, match="no session trace_9999"):
        claude_code.load(SLICE, select=["trace_9999"])
    assert len(claude_code.load(SLICE, count=5).applications) == 5
    sampled = claude_code.load(SLICE, count=5, seed=1)
    assert (
        sampled.applications.keys() == claude_code.load(SLICE, count=5, seed=1).applications.keys()
    )
    assert (
        sampled.applications.keys() != claude_code.load(SLICE, count=5, seed=2).applications.keys()
    )


def test_sessions_with_longer_prompts_are_left_out_whole() -> None:
    short = claude_code.load(SLICE, max_prompt_tokens=100_000)
    assert short.requests
    assert max(r.prompt_length + r.output_length for r in short.requests) <= 100_000
    assert short.header.options == {"data": SLICE.name, "max_prompt_tokens": 100_000}
    whole_again = claude_code.load(SLICE, select=list(short.applications))
    assert len(whole_again.requests) == len(short.requests)


def test_sessions_can_be_cut_after_a_number_of_calls() -> None:
    cut = claude_code.load(SLICE, select=["trace_0010"], max_calls=3)
    assert max(Counter(r.agent for r in cut.requests if r.agent == "main").values()) == 3
    assert len(cut.requests) > 3  # its sub-agents come early


def test_long_gaps_can_be_shortened() -> None:
    short = claude_code.load(SLICE, max_gap_s=60.0)
    assert max(r.delay_s for r in short.requests) == 60.0
    assert max(r.call.wait_s for r in short.requests if r.call and not r.call.until) == 60.0


def test_a_number_of_sessions_is_kept_under_way() -> None:
    laned = arrivals.lanes(claude_code.load(SLICE, max_gap_s=60.0, max_calls=20), 8)
    run = schedule(laned, lambda request: 0.03 * request.output_length)
    assert run.most_open == 8
