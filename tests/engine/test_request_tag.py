"""How a tag travels inside a request."""

import pytest

from tokencake_sglang.agents.errors import AgentError
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.engine.request_tag import with_tag

TAG = AgentTag(agent="coder", application="app")


def test_what_else_the_parameters_have_stays():
    given = {"temperature": 0.0, "custom_params": {"thinking_budget": 5}}
    carried = with_tag(given, TAG)
    assert carried["temperature"] == 0.0
    assert carried["custom_params"]["thinking_budget"] == 5
    assert carried["custom_params"]["tokencake"]["agent"] == "coder"
    assert given["custom_params"] == {"thinking_budget": 5}


@pytest.mark.parametrize("custom_params", [["a"], "text", 3])
def test_parameters_that_can_carry_nothing_are_refused(custom_params):
    """A tag in the headers looks at no body; SGLang's own route takes anything."""
    with pytest.raises(AgentError, match="custom_params: expected an object, got"):
        with_tag({"custom_params": custom_params}, TAG)
