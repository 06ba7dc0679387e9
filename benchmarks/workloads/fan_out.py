"""Applications that are made up: a planner, branches of several lengths side by side, a report.

Nothing here is measured. ``uneven`` is for the question what remaining paths are worth where
branches differ, with about as many requests as ``deep_research``; ``small`` is what a tenant that
asks for little sends. Steps of a branch follow each other, each with the whole branch so far; the
report has the common prefix once, then what each branch added. No agent is marked critical.
"""

from tokencake_sglang.replay import tokens
from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Header, Request, ToolCall, Workload

BRANCHES = {"uneven": (1, 1, 2, 2, 4, 4, 8, 8), "small": (2,)}
"""Steps of each branch."""

INITIAL_TOKENS = {"uneven": 4606, "small": 1024}
"""Of the context that an application begins with; the first is that of TokenCake's own DAGs."""

ROLE_TOKENS = 30
OUTPUT_TOKENS = 256
TOOL_S = 4.0
TOOL_RESULT_TOKENS = 200

APPLICATIONS = tuple(BRANCHES)


def load(application: str) -> Workload:
    """One application that begins at 0; ``arrivals.replicate`` makes more of them."""
    if application not in BRANCHES:
        raise ValueError(f"application: expected one of {APPLICATIONS}, got {application!r}")
    requests: list[Request] = []

    def turn(
        agent: str, role: str, context: tuple[Span, ...], after: tuple[str, ...], *, calls: bool
    ) -> tuple[Span, ...]:
        """Adds the agent's request; returns its context once its tool has returned."""
        name = f"{application}/{agent}"
        prompt = tokens.joined((*context, Span(f"role/{role}", 0, ROLE_TOKENS)))
        output = Span(f"{name}/output", 0, OUTPUT_TOKENS)
        call = ToolCall(tool="search", wait_s=TOOL_S, declared_s=TOOL_S) if calls else None
        requests.append(
            Request(
                request_id=name,
                application=application,
                agent=agent,
                agent_type=role,
                arrival_s=None if after else 0.0,
                wait_for=after,
                prompt=prompt,
                output=(output,),
                call=call,
            )
        )
        result = (Span(f"{name}/tool", 0, TOOL_RESULT_TOKENS),) if calls else ()
        return tokens.joined((*prompt, output, *result))

    initial = (Span(f"{application}/context", 0, INITIAL_TOKENS[application]),)
    plan = turn("planner", "planner", initial, (), calls=True)
    ends: list[str] = []
    added: list[Span] = []
    for number, steps in enumerate(BRANCHES[application], 1):
        context, before = plan, f"{application}/planner"
        for step in range(1, steps + 1):
            agent = f"branch_{number}_{step}"
            context = turn(agent, "searcher", context, (before,), calls=True)
            before = f"{application}/{agent}"
        ends.append(before)
        added += tokens.cut(context, tokens.length(plan))
    turn("reporter", "reporter", tokens.joined((*plan, *added)), tuple(ends), calls=False)
    header = Header(
        name=application,
        source="made up",
        licence="Apache-2.0",
        options={
            "branches": ",".join(map(str, BRANCHES[application])),
            "initial_tokens": INITIAL_TOKENS[application],
            "role_tokens": ROLE_TOKENS,
            "output_tokens": OUTPUT_TOKENS,
            "tool_s": TOOL_S,
            "tool_result_tokens": TOOL_RESULT_TOKENS,
        },
    )
    return Workload(header, requests)
