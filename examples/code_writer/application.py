"""The application: planner → searcher → programmers in parallel → reviewer.

Written in SGLang's frontend language. Nothing here depends on the server; ``endpoint.agent`` and
``tool_call`` are all that an agent-aware server wants to know.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import sglang as sgl

from examples.code_writer.measure import MeasuringEndpoint
from examples.code_writer.scenario import PROGRAMMERS, Scenario, Tool
from tokencake_sglang.frontend.endpoint import tool_call


def use(s, tool: Tool) -> None:
    """The agent calls a tool: the program waits, then the answer is part of the conversation."""
    with tool_call(s, tool.name, predicted_s=tool.predicted_s):
        time.sleep(tool.duration_s)
    s += tool.answer


def checked(s):
    """``s``, once all it was asked for is there.

    Raises whatever went wrong meanwhile; the frontend language alone would go on without.
    """
    error = s.error()
    if error is not None:
        raise error
    return s


@sgl.function
def make_plan(s, brief):
    s += brief + "\nThe plan, one line a module:\n"
    s += sgl.gen("plan")


@sgl.function
def look_up(s, shared, tool):
    s += shared + "\nYou are the searcher. What has to be looked up?\n"
    s += sgl.gen("query")
    use(s, tool)
    s += sgl.gen("findings")


@sgl.function
def write_modules(s, shared, scenario, application):
    s += shared
    s.sync()  # so that the fork computes the common prefix once
    branches = s.fork(PROGRAMMERS)

    def write(programmer):
        branch = branches[programmer]
        branch += scenario.module(application, programmer) + "\nThe code:\n"
        branch += sgl.gen("code_0")
        for turn in range(1, scenario.programmer_turns):
            use(branch, scenario.tests(application, programmer, turn))
            branch += "\nRepaired:\n" + sgl.gen(f"code_{turn}")
        return checked(branch)[f"code_{scenario.programmer_turns - 1}"]

    with ThreadPoolExecutor(PROGRAMMERS) as pool:
        modules = list(pool.map(write, range(PROGRAMMERS)))
    branches.join()
    s["modules"] = modules


@sgl.function
def review(s, shared, modules):
    s += shared + "\nYou are the reviewer. The modules:\n" + "\n---\n".join(modules)
    s += "\nThe verdict:\n" + sgl.gen("verdict")


def run_application(endpoint: MeasuringEndpoint, scenario: Scenario, application: int) -> float:
    """One application from its brief to its verdict. Returns its end-to-end time in seconds."""
    started_s = time.monotonic()
    name = f"application-{application}"
    options = {
        "backend": endpoint,
        "max_new_tokens": scenario.output_tokens,
        "temperature": 0.0,
        "ignore_eos": True,  # the same work on every server
        "return_logprob": True,  # carries the token ids
    }

    def agent(role: str, critical: bool = False):
        return endpoint.agent(role, application=name, agent_type=role, critical=critical)

    with agent("planner", critical=True) as planner:
        shared = scenario.brief(application)
        shared = checked(make_plan.run(shared, **options)).text()
        planner.finish()
    with agent("searcher") as searcher:
        found = checked(look_up.run(shared, scenario.search(application), **options))
        shared += f"\nFindings:\n{found['findings']}\n"
        searcher.finish()
    with agent("programmer") as programmer:
        written = checked(write_modules.run(shared, scenario, application, **options))
        modules = written["modules"]
        programmer.finish()
    with agent("reviewer", critical=True) as reviewer:
        checked(review.run(shared, modules, **options))
        reviewer.finish()
    return time.monotonic() - started_s


def run_all(endpoint: MeasuringEndpoint, scenario: Scenario) -> list[float]:
    """All applications, each started ``stagger_s`` after the one before; end-to-end seconds."""

    def run(application: int) -> float:
        time.sleep(application * scenario.stagger_s)
        return run_application(endpoint, scenario, application)

    with ThreadPoolExecutor(scenario.applications) as pool:
        return list(pool.map(run, range(scenario.applications)))
