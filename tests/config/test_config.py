"""Options: which source wins, and what an unusable value is answered with."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake_sglang.config import (
    FIELD_NAMES,
    ConfigError,
    TokencakeConfig,
    descriptions,
    enabled_by_environment,
    load_config,
    parse_config,
)


def error_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def written(tmp_path, text, name="tokencake.toml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


# -- which source wins ------------------------------------------------------------------------


def test_without_any_source_every_option_has_its_default():
    assert load_config({}, {}) == TokencakeConfig()


@pytest.mark.parametrize(
    ("flag", "variable", "in_file", "expected"),
    [
        ("0.4", "0.3", "0.2", 0.4),
        (None, "0.3", "0.2", 0.3),
        (None, None, "0.2", 0.2),
        (None, None, None, 0.0),
    ],
)
def test_flags_beat_variables_beat_the_file_beats_defaults(
    tmp_path, flag, variable, in_file, expected
):
    file = written(tmp_path, f"reserve_max = {in_file}" if in_file else "")
    environment = {"TOKENCAKE_RESERVE_MAX": variable} if variable else {}
    assert load_config({"reserve_max": flag}, environment, file).reserve_max == expected


def test_the_file_can_be_named_by_a_variable(tmp_path):
    file = written(tmp_path, json.dumps({"temporal": "off"}), "t.json")
    assert not load_config({}, {"TOKENCAKE_CONFIG": file}).temporal_on


def test_lists_and_tables_are_read_from_text():
    environment = {"TOKENCAKE_CRITICAL_TYPES": "a, b", "TOKENCAKE_TENANT_QUOTAS": "c=1,d=0.1"}
    config = load_config({"quotas": "a=0.5, b=0.25"}, environment)
    assert config.critical_types == ("a", "b")
    assert config.quotas == {"a": 0.5, "b": 0.25}
    assert config.tenant_quotas == {"c": 1.0, "d": 0.1}


def test_quotas_of_tenants_may_sum_up_to_more_than_the_pool(tmp_path):
    file = written(tmp_path, "[tenant_quotas]\na = 0.8\nb = 0.8")
    assert load_config({}, {}, file).tenant_quotas == {"a": 0.8, "b": 0.8}


# -- what an unusable value is answered with --------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ({"reserve_max": "2"}, {}, ("--tokencake-reserve-max: Input should be less than or equal "
                                   "to 1, got '2'")),
        ({"reserve_max": "much"}, {}, ("--tokencake-reserve-max: Input should be a valid number, "
                                      "unable to parse string as a number, got 'much'")),
        ({}, {"TOKENCAKE_TEMPORAL": "maybe"}, ("TOKENCAKE_TEMPORAL: Input should be 'on' or 'off', "
                                              "got 'maybe'")),
        ({"call_timeout_s": "0"}, {}, ("--tokencake-call-timeout-s: Input should be greater than "
                                      "0, got '0'")),
        ({"upload_piece_tokens": "8"}, {}, ("--tokencake-upload-piece-tokens: Input should be "
                                           "greater than or equal to 16, got '8'")),
        ({"tick_interval_s": "nan"}, {}, ("--tokencake-tick-interval-s: Input should be less "
                                         "than or equal to 1, got 'nan'")),
        ({"link_bytes_per_s": "inf"}, {}, ("--tokencake-link-bytes-per-s: Input should be less than "
                                          "or equal to 1000000000000000, got 'inf'")),
        ({"tenant_quotas": "a=0"}, {}, ("--tokencake-tenant-quotas: Input should be greater than "
                                       "0, got '0' for 'a'")),
        ({"tenant_quotas": "a=1.5"}, {}, ("--tokencake-tenant-quotas: Input should be less than or "
                                         "equal to 1, got '1.5' for 'a'")),
        ({"tenants": "a=1,b=many"}, {}, ("--tokencake-tenants: Input should be a valid number, "
                                        "unable to parse string as a number, got 'many' for 'b'")),
        ({}, {"TOKENCAKE_TENANT_QUOTAS": "a=1, b"}, ("TOKENCAKE_TENANT_QUOTAS: expected "
                                                    "NAME=NUMBER, several separated by commas, "
                                                    "got 'b'")),
        ({"quotas": "a=0.6,b=0.6"}, {}, ("--tokencake-quotas: parts of the reserve sum up to 1.2, "
                                         "at most 1")),
        ({"expected_agents": "4"}, {}, ("--tokencake-expected-agents: give it and "
                                        "expected_context_tokens, or neither, got 4 and None")),
        ({"tenant_quotas": "=0.5"}, {}, ("--tokencake-tenant-quotas: String should have at least 1 "
                                        "character, got '' for ''")),
    ],
)  # fmt: skip
def test_an_unusable_value_names_option_value_and_what_is_accepted(flags, environment, message):
    assert error_of(load_config, flags, environment) == message


def test_a_part_of_the_reserve_out_of_range_names_the_option_and_the_value():
    message = error_of(load_config, {"quotas": "a=2"}, {})
    assert message.startswith("--tokencake-quotas: ") and "less than or equal to 1" in message


def test_parts_of_the_reserve_above_the_whole_are_refused_with_their_sum():
    message = error_of(load_config, {"quotas": "a=0.7,b=0.7"}, {})
    assert "quotas: parts of the reserve sum up to 1.4, at most 1" in message


def test_an_unknown_option_names_its_file_and_the_known_ones(tmp_path):
    file = written(tmp_path, "reserv_max = 0.2")
    assert error_of(load_config, {}, {}, file) == (
        f"reserv_max in {file}: unknown option; known are {', '.join(FIELD_NAMES)}"
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.toml", "a =", "not valid TOML"),
        ("t.json", "{", "not valid JSON"),
        ("t.json", "[]", "expected a table of options, got list"),
        ("t.yaml", "", "expected a .toml or .json file, got suffix '.yaml'"),
    ],
)
def test_an_unusable_file_is_named(tmp_path, name, text, message):
    file = written(tmp_path, text, name)
    answer = error_of(load_config, {}, {}, file)
    assert answer.startswith(f"{file}: ") and message in answer


def test_a_missing_file_is_named(tmp_path):
    file = str(tmp_path / "none.toml")
    assert error_of(load_config, {}, {}, file) == (
        f"{file}: cannot be read: No such file or directory"
    )


@pytest.mark.parametrize(
    ("value", "enabled"), [("1", True), ("On", True), ("0", False), ("", False), (None, False)]
)
def test_the_variable_that_enables_is_a_yes_or_a_no(value, enabled):
    environment = {} if value is None else {"TOKENCAKE_ENABLE": value}
    assert enabled_by_environment(environment) is enabled


def test_the_variable_that_enables_refuses_anything_else():
    assert error_of(enabled_by_environment, {"TOKENCAKE_ENABLE": "2"}) == (
        "TOKENCAKE_ENABLE: expected 1 or 0, got '2'"
    )


def test_every_option_is_described():
    assert set(descriptions()) == set(FIELD_NAMES)
    assert all(text for text, _ in descriptions().values())


# -- round trips ------------------------------------------------------------------------------

FRACTIONS = st.floats(0.0, 1.0)
SECONDS = st.floats(0.001, 604_800.0)
NAMES = st.text(min_size=1, max_size=8)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temporal": st.sampled_from(["on", "off"]),
        "spatial": st.sampled_from(["on", "off"]),
        "reserve_max": FRACTIONS,
        "hold_max": FRACTIONS,
        "zmq_endpoint": st.one_of(st.none(), NAMES),
        "critical_types": st.lists(NAMES, max_size=3),
        "quotas": st.dictionaries(NAMES, st.floats(0.0, 0.3), max_size=3),
        "tenant_quotas": st.dictionaries(NAMES, st.floats(0.0, 1.0, exclude_min=True), max_size=3),
        "default_call_s": SECONDS,
        "upload_lead_s": st.floats(0.0, 60.0),
        "hold_timeout_s": SECONDS,
        "call_timeout_s": SECONDS,
        "agent_timeout_s": SECONDS,
        "upload_piece_tokens": st.integers(16, 1 << 20),
        "tick_interval_s": st.floats(0.005, 1.0),
        "decision_log": st.one_of(st.none(), NAMES),
        "record": st.one_of(st.none(), NAMES),
    },
)


@settings(max_examples=100, deadline=None)
@given(OPTIONS)
def test_any_accepted_configuration_round_trips_through_json(values):
    config = parse_config(values)
    assert parse_config(json.loads(config.to_json())) == config
