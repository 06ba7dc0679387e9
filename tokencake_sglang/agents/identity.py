"""Who a request or a signal speaks of: the tag, its validation and the key made from it."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec

from tokencake_sglang.agents.errors import AgentError, ErrorCode

MAX_NAME_CHARS = 256
DEFAULT_AGENT_TYPE = "default"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]


class AgentKey(NamedTuple):
    """An agent's identity: agent names are unique inside their application."""

    application: str
    agent: str


class AgentTag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request says of the agent that sends it (``custom_params.tokencake``).

    Only ``agent`` is required. An agent without an application is an application of its own.
    The tag never enters the cache namespace: agents with the same prefix share its KV.
    """

    agent: Name
    application: Name | None = None
    agent_type: Name = DEFAULT_AGENT_TYPE
    node: Name | None = None
    critical: bool = False
    tenant: Name | None = None

    @property
    def key(self) -> AgentKey:
        return AgentKey(self.application or self.agent, self.agent)

    def to_params(self) -> dict[str, str | bool | None]:
        """The tag as the flat dict that SGLang's ``custom_params`` can carry."""
        return msgspec.to_builtins(self)


TAG_FIELDS = AgentTag.__struct_fields__


def parse_tag(value: Any, where: str = "custom_params.tokencake") -> AgentTag:
    """Validates a tag that came from outside.

    Raises:
        AgentError: naming the field, with ``where`` as the path to it.
    """
    if not isinstance(value, Mapping):
        raise AgentError(
            ErrorCode.INVALID_TAG,
            f"{where}: expected an object with the fields {', '.join(TAG_FIELDS)}, "
            f"got {type(value).__name__}",
        )
    for name, field in value.items():
        if name not in TAG_FIELDS:
            raise AgentError(
                ErrorCode.INVALID_TAG,
                f"{where}.{name}: unknown field; accepted are {', '.join(TAG_FIELDS)}",
            )
        if isinstance(field, (Mapping, list, tuple)):
            raise AgentError(
                ErrorCode.INVALID_TAG,
                f"{where}.{name}: expected a single value, got a nested {type(field).__name__}",
            )
        if isinstance(field, str) and not is_unicode(field):
            raise AgentError(
                ErrorCode.INVALID_TAG, f"{where}.{name}: expected Unicode text, got {field!r:.100}"
            )
    try:
        return msgspec.convert(dict(value), AgentTag)
    except msgspec.ValidationError as error:
        raise AgentError(ErrorCode.INVALID_TAG, f"{where}{what_is_wrong(error, value)}") from None


def is_unicode(text: str) -> bool:
    """Whether it can be sent and stored. Python's JSON reads an escaped half of a surrogate pair
    as a character of its own, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def what_is_wrong(error: msgspec.ValidationError, value: Any) -> str:
    """msgspec's "Expected `bool`, got `str` - at `$.critical`" as ".critical: Expected `bool`, got
    'yes'": the field first, and what ``value``, the whole that was refused, has there."""
    message, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`")
    if named := _MISSING_OR_UNKNOWN.fullmatch(message):
        missing, field = named.groups()
        return f"{path}.{field}: {'missing' if missing else 'unknown field'}"
    if not message.startswith("Expected `"):
        return f"{path}: {message}"  # our own, which says what was given
    try:
        for name, index in _STEP.findall(path):
            value = value[name or int(index)]
    except (LookupError, TypeError, ValueError):  # of a mapping's values no key is given
        return f"{path}: {message}"
    given = f"one of {len(value)}" if " of length <= " in message else f"{value!r:.100}"
    return f"{path}: {message.partition(', got ')[0]}, got {given}"


_MISSING_OR_UNKNOWN = re.compile("Object (?:(missing required)|contains unknown) field `([^`]*)`")
_STEP = re.compile(r"\.(\w+)|\[([^]]*)\]")
