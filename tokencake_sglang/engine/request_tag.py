"""Which agent a request on a rank belongs to."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.identity import AgentKey, AgentTag
from tokencake_sglang.signals.tagging import PARAMS_KEY

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


def with_tag(sampling_params: dict | None, tag: AgentTag) -> dict:
    """A copy of ``sampling_params`` that carries the validated tag to the ranks.

    Raises:
        AgentError: its ``custom_params`` can carry nothing.
    """
    params = dict(sampling_params or {})
    given = params.get("custom_params") or {}
    if not isinstance(given, Mapping):
        raise AgentError(
            ErrorCode.INVALID_TAG,
            f"custom_params: expected an object, got {type(given).__name__} {given!r:.100}",
        )
    params["custom_params"] = {
        **given,
        PARAMS_KEY: {
            "application": tag.key.application,
            "agent": tag.key.agent,
            "agent_type": tag.agent_type,
            "critical": tag.critical,
        },
    }
    return params


def is_tagged(req: "Req") -> bool:
    """Whether ``with_tag`` named an agent, known by now or not."""
    custom_params = req.sampling_params.custom_params
    return bool(custom_params) and PARAMS_KEY in custom_params


def agent_key_of(req: "Req") -> AgentKey | None:
    """The agent named by the tag that ``with_tag`` put there; None for untagged requests."""
    custom_params = req.sampling_params.custom_params
    tag = custom_params.get(PARAMS_KEY) if custom_params else None
    return None if tag is None else AgentKey(tag["application"], tag["agent"])
