from typing import Literal

import pytest

from benchmarks.calibration.published import PUBLISHED_PROMPT_TOKENS
from benchmarks.workloads import tokencake_dags
from tokencake_sglang.replay.closed_loop import schedule
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Workload

CODE_WRITER = tokencake_dags.load("code_writer")
DEEP_RESEARCH = tokencake_dags.load("deep_research")


@pytest.mark.parametrize(
    ("workload", "nodes", "edges", "calls", "tools", "tool_s", "longest_s"),
    [(CODE_WRITER, 29, 36, 27, 18, 66.9, 30.5), (DEEP_RESEARCH, 35, 37, 32, 23, 82.1, 46.1)],
)
def test_counts_are_those_of_the_data_set(
    workload: Workload,
    nodes: int,
    edges: int,
    calls: int,
    tools: int,
    tool_s: float,
    longest_s: float,
) -> None:
    graph = tokencake_dags.graph(workload.name)
    waits = [r.call.wait_s for r in workload.requests if r.call is not None]
    assert (len(graph.nodes), graph.edges, len(workload.requests)) == (nodes, edges, calls)
    assert (len(waits), round(sum(waits), 6)) == (tools, tool_s)
    assert schedule(workload).application_s[workload.name] == pytest.approx(longest_s)


def test_code_writer_generates_the_published_number_of_tokens() -> None:
    assert CODE_WRITER.output_tokens == 6464


@pytest.mark.parametrize("workload", [CODE_WRITER, DEEP_RESEARCH])
def test_prompts_follow_the_composition_rules_token_by_token(workload: Workload) -> None:
    """The rules once more, over plain lists: everything before, the role, a join's suffixes."""
    context: dict[str, list[tuple[str, int]]] = {}
    prompts: dict[str, list[tuple[str, int]]] = {}

    def fresh(name: str, count: int) -> list[tuple[str, int]]:
        return [(name, i) for i in range(count)]

    waiting = list(tokencake_dags.graph(workload.name).nodes)
    while waiting:
        node = waiting.pop(0)
        if not all(name in context for name in node.predecessors):
            waiting.append(node)
            continue
        before = [context[name] for name in node.predecessors]
        text = before[0] if before else fresh(f"{workload.name}/context", 4606)
        if len(before) > 1:
            common = 0
            while all(len(b) > common and b[common] == before[0][common] for b in before):
                common += 1
            text = before[0][:common] + [token for b in before for token in b[common:]]
        if node.max_tokens:
            role = node.agent_type if workload is CODE_WRITER else node.name
            length = tokencake_dags.ROLE_TOKENS.get(node.agent_type, 30)
            text = text + fresh(f"role/{role}", length)
            prompts[f"{workload.name}/{node.name}"] = text
            text = text + fresh(f"{workload.name}/{node.name}/output", node.max_tokens)
            if node.tool:
                length = tokencake_dags.TOOL_RESULT_TOKENS.get(node.tool, 200)
                text = text + fresh(f"{workload.name}/{node.name}/tool", length)
        context[node.name] = text
    for request in workload.requests:
        plain = [(s.segment, s.start + i) for s in request.prompt for i in range(s.length)]
        assert plain == prompts[request.request_id], request.request_id


def test_nodes_without_a_call_are_folded_into_what_follows_them() -> None:
    first = CODE_WRITER.by_id["code_writer/architect_1"]
    assert first.is_root
    assert first.prompt == (
        Span("code_writer/context", 0, 4606),
        Span("role/architect", 0, 17),
    )
    assert "code_writer/end_mcp" not in CODE_WRITER.by_id


def test_a_join_waits_for_all_branches_in_order() -> None:
    assert CODE_WRITER.by_id["code_writer/reviewer_2"].wait_for == tuple(
        f"code_writer/code_write_{i}" for i in (1, 2, 3)
    )


def test_agents_carry_type_criticality_and_declared_tool() -> None:
    node = CODE_WRITER.by_id["code_writer/programmer_1_validate_patch"]
    assert (node.agent_type, node.critical) == ("programmer", True)
    assert node.call is not None
    assert (node.call.tool, node.call.wait_s, node.call.declared_s) == ("tool_call", 8.0, 8.0)
    assert sum(r.critical for r in CODE_WRITER.requests) == 17
    assert not any(r.critical for r in DEEP_RESEARCH.requests)


def test_prompts_have_as_many_tokens_as_the_authors_server_counted() -> None:
    prompt_tokens = 24 * sum(r.prompt_length for r in CODE_WRITER.requests)
    assert prompt_tokens == pytest.approx(PUBLISHED_PROMPT_TOKENS, rel=0.005)


def test_every_agent_type_and_tool_of_code_writer_has_its_published_length() -> None:
    nodes = [node for node in tokencake_dags.graph("code_writer").nodes if node.max_tokens]
    assert {node.agent_type for node in nodes} == set(tokencake_dags.ROLE_TOKENS)
    assert {node.tool for node in nodes} - {None} == set(tokencake_dags.TOOL_RESULT_TOKENS)


@pytest.mark.parametrize(("template_of", "different"), [(None, 1), ("agent_type", 1), ("node", 3)])
def test_parallel_agents_have_the_same_prompt_unless_templates_are_the_nodes_own(
    template_of: Literal["node", "agent_type"] | None, different: int
) -> None:
    workload = tokencake_dags.load("code_writer", template_of=template_of)
    branches = [f"code_writer/programmer_{i}_validate_patch" for i in (1, 2, 3)]
    assert len({workload.by_id[name].prompt for name in branches}) == different


def test_one_length_can_be_given_for_all_templates_and_for_all_tool_results() -> None:
    workload = tokencake_dags.load("code_writer", role_tokens=7, tool_result_tokens=11)
    lengths = {
        (span.segment.rpartition("/")[2] == "tool", span.length)
        for request in workload.requests
        for span in request.prompt
        if span.segment.startswith("role/") or span.segment.endswith("/tool")
    }
    assert lengths == {(False, 7), (True, 11)}


def test_an_unknown_application_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of .*'chess'"):
        tokencake_dags.load("chess")
