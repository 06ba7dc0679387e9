"""What the validation of tags and signals says, word for word."""

import pytest

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.events import CallProgress, CallStart, parse_signal
from tokencake_sglang.agents.identity import AgentKey, AgentTag, parse_tag

WHERE = "custom_params.tokencake"
START = {"type": "call_start", "agent": "a", "call_id": "c", "tool": "t"}
PROGRESS = {"type": "call_progress", "agent": "a", "call_id": "c"}
TYPE = (
    "type: expected one of call_start, call_progress, call_finish, agent_finish, "
    "application_start, application_finish"
)
GRAPH = {"type": "application_start", "application": "x"}
WAYS = "fraction, remaining_s, stage: expected exactly one of them"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("coder", (f"{WHERE}: expected an object with the fields agent, application, agent_type, "
                  "node, critical, tenant, got str")),
        ({}, f"{WHERE}.agent: missing"),
        ({"agent": ""}, f"{WHERE}.agent: Expected `str` of length >= 1, got ''"),
        ({"agent": "x" * 257}, f"{WHERE}.agent: Expected `str` of length <= 256, got one of 257"),
        ({"agent": 7}, f"{WHERE}.agent: Expected `str`, got 7"),
        ({"agent": "a", "critical": "yes"}, f"{WHERE}.critical: Expected `bool`, got 'yes'"),
        ({"agent": ["a"]}, f"{WHERE}.agent: expected a single value, got a nested list"),
        ({"agent": "a", "agnet": "b"}, (f"{WHERE}.agnet: unknown field; accepted are agent, "
                                       "application, agent_type, node, critical, tenant")),
    ],
)  # fmt: skip
def test_an_invalid_tag_is_refused_naming_the_field(value, message):
    with pytest.raises(AgentError) as caught:
        parse_tag(value)
    assert (caught.value.code, caught.value.message) == (ErrorCode.INVALID_TAG, message)
    assert caught.value.http_status == 400


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected an object, got list"),
        ({}, f"{TYPE}, got None"),
        ({"type": "tick"}, f"{TYPE}, got 'tick'"),
        ({"type": "durations_known"}, f"{TYPE}, got 'durations_known'"),
        ({"type": {}}, f"{TYPE}, got {{}}"),
        (START | {"predicted": 1}, ("predicted: unknown field of call_start; accepted are type, "
                                   "agent, application, call_id, tool, predicted_s, "
                                   "arguments_digest, arguments_size, stages")),
        (START | {"predicted_s": -1}, "predicted_s: Expected `float` >= 0.0, got -1"),
        (START | {"predicted_s": 1e9}, "predicted_s: Expected `float` <= 604800.0, got 1000000000.0"),
        (START | {"predicted_s": "1"}, "predicted_s: Expected `float | null`, got '1'"),
        (START | {"arguments_size": -1}, "arguments_size: Expected `int` >= 0, got -1"),
        (START | {"tool": None}, "tool: Expected `str`, got None"),
        (START | {"stages": "ab"}, "stages: Expected `array`, got 'ab'"),
        (START | {"stages": ["a", ""]}, "stages[1]: Expected `str` of length >= 1, got ''"),
        (START | {"stages": ["a", "b", "a"]},
         "stages: expected distinct names, got 'a' more than once"),
        (START | {"stages": [f"s{i}" for i in range(17)]}, "stages: Expected `array` of length <= 16, got one of 17"),
        (PROGRESS, f"{WAYS}, got none"),
        (PROGRESS | {"fraction": 0.5, "stage": "s"}, f"{WAYS}, got fraction and stage"),
        (PROGRESS | {"fraction": 0.0, "remaining_s": 0, "stage": "s"},
         f"{WAYS}, got fraction and remaining_s and stage"),
        (PROGRESS | {"fraction": 1.5}, "fraction: Expected `float` <= 1.0, got 1.5"),
        (PROGRESS | {"remaining_s": -1}, "remaining_s: Expected `float` >= 0.0, got -1"),
        (PROGRESS | {"stage": ""}, "stage: Expected `str` of length >= 1, got ''"),
        ({"type": "call_finish", "agent": "a"}, "call_id: missing"),
        (GRAPH, "graph, expected_output_tokens: expected at least one of them, got none"),
        (GRAPH | {"expected_output_tokens": -1},
         "expected_output_tokens: Expected `int` >= 0, got -1"),
        (GRAPH | {"graph": []}, "graph: Expected `array` of length >= 1, got []"),
        (GRAPH | {"graph": {"plan": []}}, "graph: Expected `array | null`, got {'plan': []}"),
        (GRAPH | {"graph": [{"name": f"n{i}"} for i in range(257)]},
         "graph: Expected `array` of length <= 256, got one of 257"),
        (GRAPH | {"graph": [{"name": "plan", "before": []}]},
         "graph[0].before: unknown field"),
        (GRAPH | {"graph": [{"name": "plan"}, {"name": "code", "expected_s": -1}]},
         "graph[1].expected_s: Expected `float` >= 0.0, got -1"),
        (GRAPH | {"graph": [{"name": "plan"}, {"name": "plan"}]},
         "graph: expected distinct names, got 'plan' more than once"),
        (GRAPH | {"graph": [{"name": "plan"}, {"name": "code", "after": ["plan", "tset"]}]},
         ("graph: 'code' comes after 'tset', which is none of the graph's nodes; they are plan, "
          "code")),
        (GRAPH | {"graph": [{"name": "a", "after": ["b"]}, {"name": "b", "after": ["a"]}]},
         ("graph: expected an order in which nodes can follow each other, got the circle "
          "a > b > a")),
    ],
)  # fmt: skip
def test_an_invalid_signal_is_refused_naming_the_field(value, message):
    with pytest.raises(AgentError) as caught:
        parse_signal(value)
    assert (caught.value.code, caught.value.message) == (ErrorCode.INVALID_MESSAGE, message)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_prediction_that_is_no_length_is_refused(bad):
    with pytest.raises(AgentError):
        parse_signal(START | {"predicted_s": bad})


def test_a_valid_signal_keeps_all_its_fields():
    value = START | {"application": "x", "predicted_s": 2, "arguments_digest": "d"}
    value |= {"arguments_size": 12, "stages": ["query", "embed"]}
    assert parse_signal(value) == CallStart(
        agent="a",
        application="x",
        call_id="c",
        tool="t",
        predicted_s=2.0,
        arguments_digest="d",
        arguments_size=12,
        stages=("query", "embed"),
    )


@pytest.mark.parametrize("way", [{"fraction": 0.0}, {"remaining_s": 0.0}, {"stage": "embed"}])
def test_progress_is_told_in_one_of_three_ways(way):
    nothing = dict.fromkeys(("fraction", "remaining_s", "stage"))
    expected = CallProgress(agent="a", call_id="c", **way)
    assert parse_signal(PROGRESS | nothing | way) == expected


def test_an_agent_without_application_is_one_of_its_own():
    assert AgentTag(agent="a").key == AgentKey("a", "a")
    assert parse_signal(START).key == AgentKey("a", "a")


def test_a_tag_round_trips_through_custom_params():
    tag = AgentTag(agent="a", application="x", agent_type="t", node="n", critical=True)
    assert parse_tag(tag.to_params()) == tag
