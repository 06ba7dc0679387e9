"""What a policy may be told of a workload beforehand."""

from tokencake_sglang.agents.identity import AgentKey
from tokencake_sglang.agents.workflow import Step, Workflow
from tokencake_sglang.policy import Knowledge
from tokencake_sglang.replay import tokens
from tokencake_sglang.replay.workload import Request, Workload
from tokencake_sglang.timewarp.cost import CostModel, Work


def workflow_of(workload: Workload) -> Workflow:
    """Every request as a step. A sub-agent's first request waits for the one that spawned it."""
    return Workflow(_step(request, workload) for request in workload.requests)


def knowledge_of(workload: Workload, cost: CostModel) -> Knowledge:
    """The workflow, and the cost model as the offline profile that published policies ask for."""

    def decode_s(requests: int, kv_tokens: int) -> float:
        each = kv_tokens // max(requests, 1)
        return cost.forward_s([Work(1, each)] * requests)

    return Knowledge(
        workflow=workflow_of(workload),
        prefill_s=lambda new, context: cost.forward_s([Work(new, context)]),
        decode_s=decode_s,
    )


def _step(request: Request, workload: Workload) -> Step:
    before = request.wait_for
    if request.spawned_by is not None:
        before = (*before, request.spawned_by)
    key = None
    if request.application is not None and request.agent is not None:
        key = AgentKey(request.application, request.agent)
    call = request.call
    return Step(
        rid=request.request_id,
        key=key,
        application=request.group,
        agent_type=request.agent_type,
        critical=request.critical,
        wait_for=before,
        prompt_tokens=request.prompt_length,
        output_tokens=request.output_length,
        tool=None if call is None else call.tool,
        declared_tool_s=None if call is None else call.declared_s,
        tool_s=0.0 if call is None else call.wait_s,
        pause_s=request.delay_s,
        reuses={name: _reused(request, workload.by_id[name]) for name in before},
    )


def _reused(request: Request, before: Request) -> int:
    """How much of what ``before`` leaves in the tree ``request`` begins with."""
    left = tokens.joined((*before.prompt, *before.output))
    return tokens.common_prefix(left, request.prompt)
