"""The TokenCake authors' two applications, from ``benchmarks/data/tokencake_dags.json``.

Composition, as the data set says it: a successor's input is its predecessor's input, output and
tool result, then its role's template; a join keeps the common prefix once, then appends the branch
suffixes in predecessor order.

Lengths are those of the authors' own texts where they wrote one: the templates and the simulated
tool results of ``conversation-tools.json`` (commit db25a7e3), counted with Qwen's tokenizer. In it
agents of one type have the same template, word by word, so parallel agents of one type begin with
the same prompt. With these lengths the 648 prompts of 24 ``code_writer`` applications have
5,901,024 tokens, 0.4 % more than the 5,876,868 that the authors' server counted. ``deep_research``
has no such file: tools that both applications use have the same lengths in both, others 200 tokens,
and templates 30.

Chosen here: every application has an initial context of its own, and parallel agents with the same
prompt generate different texts. Nodes without an LLM call only join and cost nothing, so they are
folded away. The declared time of a tool is its time.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.workloads import datasets
from tokencake_sglang.replay import tokens
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Header, ReplayError, Request, ToolCall, Workload

DATA = datasets.SLICES / "tokencake_dags.json"
APPLICATIONS = ("code_writer", "deep_research")

ROLE_TOKENS = {
    "architect": 17,
    "mcp_conditional_execution": 56,
    "mcp_external_test": 25,
    "mcp_external_tool_eval": 32,
    "mcp_file_write": 28,
    "mcp_search": 32,
    "mcp_user_confirm": 25,
    "programmer": 13,
    "reviewer": 13,
    "reviser": 15,
}
"""Length of an agent type's template in the authors' file, in Qwen tokens."""

TOOL_RESULT_TOKENS = {
    "conditional_execution": 180,
    "external_tool_eval": 220,
    "file_write": 205,
    "search": 389,
    "test": 208,
    "tool_call": 269,
    "user_confirm": 165,
}
"""Length of a tool's simulated result in the authors' file, in Qwen tokens."""

OTHER_ROLE_TOKENS = 30
OTHER_TOOL_RESULT_TOKENS = 200


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the graph as the data set describes it; fields that nothing here uses are left."""

    name: str
    agent_type: str
    predecessors: tuple[str, ...]
    max_tokens: int
    tool: str | None
    tool_duration_s: float
    critical_path: bool


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    nodes: tuple[Node, ...]

    @property
    def edges(self) -> int:
        return sum(len(node.predecessors) for node in self.nodes)


def graph(application: str, path: Path = DATA) -> Graph:
    if application not in APPLICATIONS:
        raise ValueError(f"application: expected one of {APPLICATIONS}, got {application!r}")
    whole = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    return msgspec.json.decode(whole[application], type=Graph)


def load(
    application: str,
    path: Path = DATA,
    *,
    initial_tokens: int = 4606,
    role_tokens: int | None = None,
    tool_result_tokens: int | None = None,
    template_of: Literal["node", "agent_type"] | None = None,
) -> Workload:
    """One application that begins at 0; ``arrivals.replicate`` makes more of them.

    Args:
        role_tokens: one length for every template instead of the tables above.
        tool_result_tokens: likewise for every tool result.
        template_of: whether agents of one type have templates of their own or the same one. With
            the same one, parallel agents of one type have the same prompt. By default the same one
            in ``code_writer``, as the authors' file has it, and their own in ``deep_research``.
    """
    source = graph(application, path)
    if template_of is None:
        template_of = "agent_type" if application == "code_writer" else "node"
    nodes = {node.name: node for node in source.nodes}
    context: dict[str, tuple[Span, ...]] = {}
    folded: dict[str, tuple[str, ...]] = {}
    requests = []
    for node in _in_order(nodes):
        prompt = _joined([context[name] for name in node.predecessors]) or (
            Span(f"{application}/context", 0, initial_tokens),
        )
        before = tuple(dict.fromkeys(r for name in node.predecessors for r in folded[name]))
        if not node.max_tokens:
            if node.tool_duration_s:
                raise ReplayError(f"node {node.name!r}: a tool without an LLM call is not handled")
            context[node.name], folded[node.name] = prompt, before
            continue
        template = node.name if template_of == "node" else node.agent_type
        role_length = role_tokens
        if role_length is None:
            role_length = ROLE_TOKENS.get(node.agent_type, OTHER_ROLE_TOKENS)
        prompt = tokens.joined((*prompt, Span(f"role/{template}", 0, role_length)))
        output = Span(f"{application}/{node.name}/output", 0, node.max_tokens)
        call = None
        after = [output]
        if node.tool is not None:
            call = ToolCall(
                tool=node.tool, wait_s=node.tool_duration_s, declared_s=node.tool_duration_s
            )
            result_length = tool_result_tokens
            if result_length is None:
                result_length = TOOL_RESULT_TOKENS.get(node.tool, OTHER_TOOL_RESULT_TOKENS)
            after.append(Span(f"{application}/{node.name}/tool", 0, result_length))
        request = Request(
            request_id=f"{application}/{node.name}",
            application=application,
            agent=node.name,
            agent_type=node.agent_type,
            critical=node.critical_path,
            arrival_s=None if before else 0.0,
            wait_for=before,
            prompt=prompt,
            output=(output,),
            call=call,
        )
        requests.append(request)
        context[node.name] = tokens.joined((*prompt, *after))
        folded[node.name] = (request.request_id,)
    header = Header(
        name=application,
        source=source.source,
        licence="Apache-2.0",
        options={
            "initial_tokens": initial_tokens,
            "role_tokens": "per agent type" if role_tokens is None else role_tokens,
            "tool_result_tokens": "per tool" if tool_result_tokens is None else tool_result_tokens,
            "template_of": template_of,
        },
    )
    return Workload(header, requests)


def _in_order(nodes: dict[str, Node]) -> Iterable[Node]:
    """Nodes after their predecessors, otherwise as in the file."""
    done: set[str] = set()
    while len(done) < len(nodes):
        ready = [
            node
            for node in nodes.values()
            if node.name not in done and done.issuperset(node.predecessors)
        ]
        if not ready:
            raise ReplayError(f"the graph has a cycle among {sorted(nodes.keys() - done)}")
        for node in ready:
            done.add(node.name)
            yield node


def _joined(branches: list[tuple[Span, ...]]) -> tuple[Span, ...]:
    if not branches:
        return ()
    common = min(tokens.common_prefix(branches[0], branch) for branch in branches)
    suffixes = [span for branch in branches for span in tokens.cut(branch, common)]
    return tokens.joined((*tokens.cut(branches[0], 0, common), *suffixes))
