import pytest

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
            text = text + fresh(f"role/{node.name}", 100)
            prompts[f"{workload.name}/{node.name}"] = text
            text = text + fresh(f"{workload.name}/{node.name}/output", node.max_tokens)
            if node.tool:
                text = text + fresh(f"{workload.name}/{node.name}/tool", 200)
        context[node.name] = text
    for request in workload.requests:
        plain = [(s.segment, s.start + i) for s in request.prompt for i in range(s.length)]
        assert plain == prompts[request.request_id], request.request_id


def test_nodes_without_a_call_are_folded_into_what_follows_them() -> None:
    first = CODE_WRITER.by_id["code_writer/architect_1"]
    assert first.is_root
    assert first.prompt == (
        Span("code_writer/context", 0, 4606),
        Span("role/architect_1", 0, 100),
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


def test_templates_can_be_those_of_the_agent_type() -> None:
    shared = tokencake_dags.load("code_writer", template_of="agent_type")
    prompts = {shared.by_id[f"code_writer/programmer_{i}_validate_patch"].prompt for i in (1, 2, 3)}
    assert len(prompts) == 1


def test_an_unknown_application_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of .*'chess'"):
        tokencake_dags.load("chess")
