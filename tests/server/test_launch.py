"""What the launcher says and how it ends, with the flags and with what cannot work."""

import json
import pkgutil
import re
import socket
from pathlib import Path

import pytest

from tests.models import tiny_llama
from tests.server.processes import (
    SCRIPTS,
    TINY_FLAGS,
    free_port,
    last_line,
    printed_json,
    run_python,
)
from tokencake_sglang import compat
from tokencake_sglang.config import FIELD_NAMES, ConfigError, TokencakeConfig
from tokencake_sglang.engine.main_process import check_decision_log
from tokencake_sglang.engine.policy_planner import check_policy

pytestmark = pytest.mark.slow

ENABLE = "--enable-tokencake"
LAUNCH = ("-m", "sglang.launch_server")

PATCHED_LAUNCH = """
import runpy, sys
{patch}
sys.argv = ["sglang.launch_server", *sys.argv[1:]]
runpy.run_module("sglang.launch_server", run_name="__main__")
"""

SETTINGS = {
    "--disable-radix-cache": ["--disable-radix-cache"],
    "--speculative-algorithm": ["--speculative-algorithm", "NGRAM"],
    "--disaggregation-mode": ["--disaggregation-mode", "prefill"],
    "--tokenizer-worker-num": ["--tokenizer-worker-num", "2"],
    "--detokenizer-worker-num": ["--detokenizer-worker-num", "2"],
    "--use-ray": ["--use-ray"],
    "--grpc-mode": ["--grpc-mode"],
    "--enable-lmcache": ["--enable-lmcache"],
    "--enable-flexkv": ["--enable-flexkv"],
    "--enable-unified-cache-external-linker": ["--enable-unified-cache-external-linker"],
    "--hicache-storage-backend": ["--hicache-storage-backend", "hf3fs"],
    "--hicache-host-memory-mode": ["--hicache-host-memory-mode", "buffer_only"],
    "--hicache-write-policy write_back": ["--hicache-write-policy", "write_back"],
    "--enable-session-radix-cache": ["--enable-session-radix-cache"],
    "--enable-streaming-session": ["--enable-streaming-session"],
    "--enable-pdmux": ["--enable-pdmux"],
    "--enable-dp-attention": ["--enable-dp-attention", "--tp-size", "2", "--dp-size", "2"],
    "encoder disaggregation": ["--language-only"],
    "--radix-cache-backend other": ["--radix-cache-backend", "other"],
    "--tokencake-temporal: invalid choice: 'maybe'": ["--tokencake-temporal", "maybe"],
    "--tokencake-reserve-max: Input should be": ["--tokencake-reserve-max", "2"],
    "--tokencake-policy: expected 'tokencake' or module:Class": [
        "--tokencake-policy",
        "nothing",
    ],
    "--tokencake-quotas: parts of the reserve sum up to 1.2, at most 1": [
        "--tokencake-quotas",
        "a=.6,b=.6",
    ],
    "reserve_maximum in ": ["--tokencake-config", "unknown_option.toml"],
}
"""What the refusal names, and flags that must be refused."""

VARIABLES = {
    "SGLANG_RUST_SERVER": ("1", "0"),
    "TOKENCAKE_TICK_INTERVAL_S": ("x", "0.1"),
    "TOKENCAKE_TEMPORAL": ("maybe", "off"),
}
"""A value that must be refused, and one that must not."""

MODELS = {
    "MLA": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "kv_lora_rank": 32,
        "q_lora_rank": None,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
    },
    "sliding-window": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 64,
    },
    "hybrid (state-space)": {"architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1"},
    "embedding": {"architectures": ["BertModel"], "model_type": "bert"},
}
"""Kinds of models that must be refused, as changes to the tiny Llama's configuration."""

HYBRID_FLAGS = ["--mamba-radix-cache-strategy", "no_buffer", "--disable-overlap-schedule"]
"""SGLang's default strategy wants an accelerator."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def outcomes(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How each command line ends; all of them in one process."""

    def command(model: Path, *flags: str, **variables: str) -> dict:
        argv = ["--model-path", str(model), *TINY_FLAGS, *flags]
        return {"argv": argv, "environment": variables}

    (llama / "unknown_option.toml").write_text("reserve_maximum = 0.5\n")
    commands = {"": command(llama, ENABLE)}
    commands["file storage"] = command(llama, ENABLE, "--hicache-storage-backend", "file")
    commands["without the switch"] = command(llama, "--tokencake-reserve-max", "0.2")
    for name, flags in SETTINGS.items():
        flags = [str(llama / flag) if flag.endswith(".toml") else flag for flag in flags]
        commands[name] = command(llama, ENABLE, *flags)
    for variable, (bad, good) in VARIABLES.items():
        commands[f"{variable}={bad}"] = command(llama, ENABLE, **{variable: bad})
        commands[f"{variable}={good}"] = command(llama, ENABLE, **{variable: good})
    for kind, config in MODELS.items():
        model = tiny_llama(tmp_path_factory.mktemp("model"), **config)
        hybrid_flags = HYBRID_FLAGS if kind.startswith("hybrid") else ()
        commands[kind] = command(model, ENABLE, *hybrid_flags)
    completed = run_python(str(SCRIPTS / "resolve.py"), json.dumps(list(commands.values())))
    assert completed.returncode == 0, completed.stdout[-4000:]
    return dict(zip(commands, printed_json(completed), strict=True))


def launch(*flags: str, patch: str = "", **variables: str):
    program = ("-c", PATCHED_LAUNCH.format(patch=patch)) if patch else LAUNCH
    return run_python(*program, *flags, **variables)


def test_help_shows_every_flag():
    completed = launch("--help")
    assert completed.returncode == 0
    for name in ("enable-tokencake", *(f"tokencake-{field}" for field in FIELD_NAMES)):
        assert f"  --{name.replace('_', '-')}" in completed.stdout


def test_a_served_mode_and_model_is_not_refused(outcomes):
    assert outcomes[""] == "started"


def test_files_are_a_storage_backend_that_is_served(outcomes):
    assert outcomes["file storage"] == "started"
    assert outcomes["--hicache-storage-backend"].endswith(
        "; use --hicache-storage-backend file, or none"
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_cannot_be_served_is_refused_by_name(outcomes, name):
    assert outcomes[name].startswith(("tokencake: ", "sglang serve: error: argument "))
    assert name in outcomes[name]


def test_a_flag_without_the_switch_is_refused_by_name(outcomes):
    expected = "tokencake: --tokencake-reserve-max needs --enable-tokencake"
    assert outcomes["without the switch"] == expected


@pytest.mark.parametrize(("variable", "values"), VARIABLES.items(), ids=list(VARIABLES))
def test_a_variable_is_refused_by_name_for_its_value(outcomes, variable, values):
    bad, good = values
    assert outcomes[f"{variable}={bad}"].startswith(f"tokencake: {variable}")
    assert outcomes[f"{variable}={good}"] == "started"


@pytest.mark.parametrize("kind", MODELS)
def test_a_kind_of_model_that_is_not_served_is_refused_by_name(outcomes, kind):
    assert outcomes[kind].startswith(f"tokencake: {kind} models are not supported")
    assert MODELS[kind]["architectures"][0] in outcomes[kind]


def test_an_unserved_mode_ends_the_launcher_with_its_name(llama):
    flags = ("--model-path", str(llama), *TINY_FLAGS, "--disable-radix-cache")
    completed = launch(*flags, TOKENCAKE_ENABLE="1")
    assert completed.returncode == 1
    assert last_line(completed).startswith("tokencake: --disable-radix-cache is not supported")


def test_an_address_in_use_ends_the_launcher_with_its_option(llama):
    port = free_port()
    with socket.create_server(("127.0.0.1", port + 1000)):
        completed = launch(
            *("--model-path", str(llama), *TINY_FLAGS, "--max-total-tokens", "1024"),
            *("--port", str(port), ENABLE),
        )
    assert completed.returncode == 1
    assert last_line(completed).startswith("tokencake: --tokencake-zmq-endpoint: cannot listen")


@pytest.mark.parametrize(
    ("policy", "why"),
    [("no.such:Policy", "cannot be loaded: No module"), ("json:JSONDecoder", "is not a subclass")],
)
def test_a_policy_that_cannot_decide_is_refused_by_name(policy, why):
    with pytest.raises(ConfigError, match=f"^--tokencake-policy: '{policy}' {why}"):
        check_policy(TokencakeConfig(policy=policy))


def test_a_decision_log_that_cannot_be_written_is_refused_by_name():
    with pytest.raises(ConfigError, match="^--tokencake-decision-log: cannot write '/nowhere/log'"):
        check_decision_log(TokencakeConfig(decision_log="/nowhere/log"))


@pytest.mark.parametrize("path", compat.REQUIRED_ATTRIBUTES)
def test_a_missing_attribute_of_sglang_is_refused_by_name(monkeypatch, path):
    owner, _, name = path.replace(":", ".").rpartition(".")
    owner = pkgutil.resolve_name(owner)
    for holder in getattr(owner, "__mro__", [owner]):
        if name in vars(holder):
            monkeypatch.delattr(holder, name)
    with pytest.raises(compat.Unsupported, match=re.escape(path.replace(":", "."))):
        compat.check_attributes()


def test_a_missing_hook_target_ends_the_launcher_with_its_name(llama):
    target = "sglang.srt.managers.scheduler.Scheduler.get_prefill_adder_class"
    patch = "from sglang.srt.managers.scheduler import Scheduler; del Scheduler.{}"
    completed = launch(
        *("--model-path", str(llama), ENABLE), patch=patch.format(target.rpartition(".")[2])
    )
    assert completed.returncode == 1
    assert last_line(completed).startswith(f"tokencake: the hook on {target} did not take")


def test_another_sglang_version_ends_the_launcher_with_its_number(llama):
    patch = "import sglang.version; sglang.version.__version__ = '0.5.99'"
    completed = launch("--model-path", str(llama), ENABLE, patch=patch)
    assert completed.returncode == 1
    assert last_line(completed).startswith("tokencake: SGLang 0.5.99 is not supported; install")


def test_without_the_flag_nothing_but_the_flags_is_there(llama):
    completed = run_python(str(SCRIPTS / "stock.py"), "--model-path", str(llama))
    assert completed.returncode == 0, completed.stdout
    found = printed_json(completed)
    target = "sglang.srt.server_args.ServerArgs"
    assert found == {
        "hooks": [f"{target}.add_cli_args", f"{target}.from_cli_args"],
        "radix_cache_backend": None,
        "enable_hierarchical_cache": False,
        "variables": [],
        "backend_registered": False,
    }
