"""Finds who sends a request: its tag, from the places that clients can reach."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from tokencake_sglang.agents.errors import AgentError, ErrorCode
from tokencake_sglang.agents.identity import (
    MAX_NAME_CHARS,
    AgentTag,
    is_unicode,
    parse_tag,
    what_is_wrong,
)

PARAMS_KEY = "tokencake"
HEADER_PREFIX = "x-tokencake-"
HEADERS = {
    "x-tokencake-agent": "agent",
    "x-tokencake-application": "application",
    "x-tokencake-agent-type": "agent_type",
    "x-tokencake-node": "node",
    "x-tokencake-critical": "critical",
    "x-tokencake-tenant": "tenant",
}
_HEADER_OF = {field: header for header, field in HEADERS.items()}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def find_tag(
    custom_params: Mapping[str, Any] | None,
    headers: Mapping[str, str] | None,
    session_id: str | None,
) -> AgentTag | None:
    """The request's tag: ``custom_params["tokencake"]``, else headers, else ``session_id``.

    Only the first place that speaks of an agent is looked at. A ``session_id`` that cannot be an
    agent's name is no tag: its client never asked for one.

    Raises:
        AgentError: naming the field or the header, and what would be accepted.
    """
    if isinstance(custom_params, Mapping) and PARAMS_KEY in custom_params:
        return parse_tag(custom_params[PARAMS_KEY])
    tag = tag_of_headers(headers.items()) if headers else None
    if tag is None and isinstance(session_id, str) and _can_be_name(session_id):
        tag = AgentTag(agent=session_id)
    return tag


def _can_be_name(text: str) -> bool:
    return 0 < len(text) <= MAX_NAME_CHARS and is_unicode(text)


def tag_of_headers(headers: Iterable[tuple[str, str]]) -> AgentTag | None:
    """The tag in ``x-tokencake-*`` headers (names in any case); None without any of them.

    Raises:
        AgentError: naming the header.
    """
    fields: dict[str, str | bool] = {}
    for name, text in headers:
        header = name.lower()
        if not header.startswith(HEADER_PREFIX):
            continue
        if header not in HEADERS:
            raise _refusal(header, f"unknown header; accepted are {', '.join(HEADERS)}")
        field = HEADERS[header]
        if field in fields:
            raise _refusal(header, "given twice; send it once")
        fields[field] = _boolean(header, text) if field == "critical" else text
    if not fields:
        return None
    if "agent" not in fields:
        raise _refusal(_HEADER_OF["agent"], "missing; the other x-tokencake-* headers need it")
    try:
        return msgspec.convert(fields, AgentTag)
    except msgspec.ValidationError as error:
        field, _, message = what_is_wrong(error, fields).lstrip(".").partition(": ")
        raise _refusal(_HEADER_OF[field], message) from None


def _boolean(header: str, text: str) -> bool:
    value = _BOOLEANS.get(text.strip().lower())
    if value is None:
        raise _refusal(header, f"expected one of {', '.join(_BOOLEANS)}, got {text!r:.100}")
    return value


def _refusal(header: str, message: str) -> AgentError:
    return AgentError(ErrorCode.INVALID_TAG, f"{header}: {message}")
