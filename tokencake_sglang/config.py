"""The extension's options: one frozen record, filled by flags, environment and file alike."""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

ENABLE_VARIABLE = "TOKENCAKE_ENABLE"
CONFIG_VARIABLE = "TOKENCAKE_CONFIG"
VARIABLE_PREFIX = "TOKENCAKE_"

Switch = Literal["on", "off"]
Part = Literal[
    "order",
    "paths",
    "working-set",
    "reopening",
    "headroom",
    "sharing",
    "eviction",
    "uploads",
    "load-fence",
]
SWITCHES = ("temporal", "spatial")
LISTS = ("critical_types", "without")
"""Written ``a,b`` in flags and variables."""
TABLES = ("quotas", "tenants", "tenant_quotas")
"""Written ``a=0.5,b=0.25`` there."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
Weight = Annotated[float, Field(gt=0.0, le=1000.0)]
UNTAGGED_WEIGHT = 1.0
"""As that of a tenant which is not named."""

TenantName = Annotated[str, Field(min_length=1)]
PositiveSeconds = Annotated[float, Field(gt=0.0, le=7 * 24 * 3600.0)]


class ConfigError(ValueError):
    """An option that cannot be used: its name, its value and what would be accepted."""


def _policy_name(name: str) -> str:
    module, colon, class_name = name.partition(":")
    if name != "tokencake" and not (module and colon and class_name.isidentifier()):
        raise ValueError("expected 'tokencake' or module:Class")
    return name


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TokencakeConfig:
    """All options. A flag wins over its variable, a variable over the file, the file over these.

    The field ``reserve_max`` is ``--tokencake-reserve-max``, ``TOKENCAKE_RESERVE_MAX`` and the
    key ``reserve_max`` of the file. Fractions are of the KV pool (device slots).
    """

    temporal: Annotated[
        Switch, Field(description="swap idle agents' KV out during tool calls and back in time")
    ] = "on"
    spatial: Annotated[
        Switch,
        Field(
            description="order the queue by application, let new ones wait while those that take "
            "part need the memory, reserve KV for critical agents"
        ),
    ] = "on"
    reserve_max: Annotated[
        Fraction, Field(description="most of the KV pool that critical agents can reserve and pin")
    ] = 0.0
    hold_max: Annotated[
        Fraction,
        Field(description="most of the KV pool that uploaded prefixes hold until their request"),
    ] = 0.3
    zmq_endpoint: Annotated[
        str | None,
        Field(
            description="where the server listens for signals over ZeroMQ, as tcp://HOST:PORT "
            "or ipc://PATH; 'off' for none (default: loopback, HTTP port + 1000)"
        ),
    ] = None
    critical_types: Annotated[
        tuple[str, ...],
        Field(description="agent types that are critical without saying so in their tags"),
    ] = ()
    quotas: Annotated[
        dict[str, Fraction],
        Field(
            description="per critical agent type, its part of the reserve; others share the rest"
        ),
    ] = Field(default_factory=dict)
    tenants: Annotated[
        dict[str, Weight],
        Field(description="per tenant, the weight of its share of the KV pool; others weigh 1"),
    ] = Field(default_factory=dict)
    tenant_quotas: Annotated[
        dict[TenantName, PositiveFraction],
        Field(
            description="per tenant, the most of the KV pool that its applications may be expected "
            "to fill; others are not bounded"
        ),
    ] = Field(default_factory=dict)
    untagged_weight: Annotated[
        Annotated[float, Field(ge=0.0, le=1000.0)],
        Field(
            description="beside tagged requests, untagged ones together have a share of the KV pool by "
            "this weight, as a tenant has; with 0 they keep the places that SGLang gives them"
        ),
    ] = UNTAGGED_WEIGHT
    untagged_first_token_s: Annotated[
        PositiveSeconds | None,
        Field(
            description="untagged requests, chat beside agents, go first once they have waited for "
            "half of this"
        ),
    ] = None
    default_call_s: Annotated[
        PositiveSeconds,
        Field(description="length assumed for a tool call of which nothing is known"),
    ] = 1.0
    upload_lead_s: Annotated[
        Annotated[float, Field(ge=0.0, le=60.0)],
        Field(description="how long before the predicted end of a call its KV should be back"),
    ] = 0.2
    hold_timeout_s: Annotated[
        PositiveSeconds,
        Field(description="how long an uploaded prefix waits for its request past the prediction"),
    ] = 5.0
    call_timeout_s: Annotated[
        PositiveSeconds, Field(description="when an open tool call is given up")
    ] = 600.0
    agent_timeout_s: Annotated[
        PositiveSeconds, Field(description="when an agent that says nothing more is forgotten")
    ] = 3600.0
    upload_piece_tokens: Annotated[
        int,
        Field(
            ge=16,
            le=1 << 20,
            description="tokens uploaded at once; more if the link carries more in a scheduler step",
        ),
    ] = 4096
    link_bytes_per_s: Annotated[
        Annotated[float, Field(gt=0.0, le=1e15)],
        Field(description="speed of the link between host and device, one way (PCIe 4 x16: 25e9)"),
    ] = 25e9
    expected_agents: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(
            description="how many agents will work at once; a start warns if the host tier is too "
            "small for their contexts"
        ),
    ] = None
    expected_context_tokens: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(description="tokens of one agent's context, for that check"),
    ] = None
    policy: Annotated[
        Annotated[str, AfterValidator(_policy_name)],
        Field(
            description="who decides: 'tokencake', or module:Class of a "
            "tokencake_sglang.policy.Policy of your own"
        ),
    ] = "tokencake"
    tick_interval_s: Annotated[
        Annotated[float, Field(ge=0.005, le=1.0)],
        Field(description="how often ranks are told the time while an agent is in a tool call"),
    ] = 0.05
    without: Annotated[
        tuple[Part, ...],
        Field(
            description="parts that do nothing, to measure what they are worth: order, paths, "
            "working-set, reopening, headroom, sharing, eviction, uploads, load-fence"
        ),
    ] = ()
    decision_log: Annotated[
        str | None, Field(description="file that receives every decision as a JSON line")
    ] = None
    durations_file: Annotated[
        str | None,
        Field(description="file that keeps what was learnt of tool calls' lengths across restarts"),
    ] = None
    record: Annotated[
        str | None,
        Field(description="new file that receives what is asked of the server, for a replay"),
    ] = None

    @model_validator(mode="after")
    def _quotas_fit(self) -> "TokencakeConfig":
        if sum(self.quotas.values()) > 1.0 + 1e-9:
            raise ValueError(
                f"quotas: parts of the reserve sum up to {sum(self.quotas.values()):g}, at most 1"
            )
        return self

    @model_validator(mode="after")
    def _expected_go_together(self) -> "TokencakeConfig":
        if (self.expected_agents is None) != (self.expected_context_tokens is None):
            raise ValueError(
                "expected_agents: give it and expected_context_tokens, or neither, got "
                f"{self.expected_agents} and {self.expected_context_tokens}"
            )
        return self

    @property
    def temporal_on(self) -> bool:
        return self.temporal == "on"

    @property
    def spatial_on(self) -> bool:
        return self.spatial == "on"

    def to_json(self) -> str:
        return TypeAdapter(TokencakeConfig).dump_json(self).decode()


FIELD_NAMES = tuple(field.name for field in fields(TokencakeConfig))


def descriptions() -> dict[str, tuple[str, Any]]:
    """Each option's one-line help and its default, for ``--help`` and the documentation."""
    schema = TypeAdapter(TokencakeConfig).json_schema()["properties"]
    defaults = asdict(TokencakeConfig())
    return {name: (schema[name]["description"], defaults[name]) for name in FIELD_NAMES}


def load_config(
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str | None = None,
) -> TokencakeConfig:
    """Merges file, environment and flags.

    Args:
        flags: options given on the command line, by field name; ``None`` values are not given.
        environment: defaults to the process's own.
        file: a ``.toml`` or ``.json`` file; defaults to ``TOKENCAKE_CONFIG``.

    Raises:
        ConfigError: one line that names the option, the value and what would be accepted.
    """
    environment = os.environ if environment is None else environment
    file = file or environment.get(CONFIG_VARIABLE)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in (_read_file(file) if file else {}).items():
        values[name], origin[name] = value, f"{name} in {file}"
    for name in FIELD_NAMES:
        variable = VARIABLE_PREFIX + name.upper()
        if variable in environment:
            values[name] = _from_text(name, environment[variable], variable)
            origin[name] = variable
    for name, value in (flags or {}).items():
        if value is not None:
            flag = "--tokencake-" + name.replace("_", "-")
            values[name] = _from_text(name, value, flag) if isinstance(value, str) else value
            origin[name] = flag
    return parse_config(values, origin)


def parse_config(
    values: Mapping[str, Any], origin: Mapping[str, str] | None = None
) -> TokencakeConfig:
    """Builds the record from plain values; ``origin`` names for each field where it came from."""
    origin = origin or {}
    for name in values:
        if name not in FIELD_NAMES:
            raise ConfigError(
                f"{origin.get(name, name)}: unknown option; known are {', '.join(FIELD_NAMES)}"
            )
    try:
        return TypeAdapter(TokencakeConfig).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # of several options together: ours, which names one first
            name, _, rest = reason.partition(":")
            raise ConfigError(f"{origin.get(name, name)}:{rest}") from None
        name = str(first["loc"][0])
        entry = f" for {first['loc'][1]!r:.200}" if name in TABLES and first["loc"][1:] else ""
        given = f"got {first['input']!r:.200}{entry}"
        raise ConfigError(f"{origin.get(name, name)}: {reason}, {given}") from None


def enabled_by_environment(environment: Mapping[str, str] | None = None) -> bool:
    """Whether ``TOKENCAKE_ENABLE`` asks for the extension.

    Raises:
        ConfigError: on a value that is neither a yes nor a no.
    """
    environment = os.environ if environment is None else environment
    value = environment.get(ENABLE_VARIABLE, "0").strip().lower()
    if value in ("1", "true", "on", "yes"):
        return True
    if value in ("", "0", "false", "off", "no"):
        return False
    raise ConfigError(f"{ENABLE_VARIABLE}: expected 1 or 0, got {value!r}")


def _from_text(name: str, text: str, where: str) -> Any:
    """Text from a flag or a variable; ``where`` names it.

    Raises:
        ConfigError: for an entry of a table without a number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if name in LISTS:
        return tuple(parts)
    if name not in TABLES:
        return text
    for part in parts:
        if "=" not in part:
            raise ConfigError(
                f"{where}: expected NAME=NUMBER, several separated by commas, got {part!r:.200}"
            )
    return {key.strip(): value for key, _, value in (part.partition("=") for part in parts)}


def _read_file(file: str) -> dict[str, Any]:
    path = Path(file)
    try:
        text = path.read_text()
        match path.suffix:
            case ".toml":
                values = tomllib.loads(text)
            case ".json":
                values = json.loads(text)
            case suffix:
                raise ConfigError(f"{file}: expected a .toml or .json file, got suffix {suffix!r}")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file}: not valid {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected a table of options, got {type(values).__name__}")
    return values
