"""The entry point: what SGLang calls in every process, and the one table of hooks.

Without ``--enable-tokencake`` (or ``TOKENCAKE_ENABLE=1``) only the two hooks that make the flags
exist are applied, and a server is stock SGLang.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from tokencake_sglang import compat
from tokencake_sglang.config import (
    LISTS,
    SWITCHES,
    TABLES,
    ConfigError,
    TokencakeConfig,
    descriptions,
    enabled_by_environment,
    load_config,
)

SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
TOKENIZER_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"

RESOLVED_VARIABLE = "TOKENCAKE_RESOLVED_CONFIG"
"""Carries the merged configuration from the main process to its children; not for users."""

_active: TokencakeConfig | None = None


class Hook(NamedTuple):
    """``how`` is SGLang's HookType by name; ``feeds`` says what depends on it."""

    target: str
    how: str
    function: Callable[..., Any]
    feeds: str


def load() -> None:
    """Called by SGLang's ``load_plugins`` in the launcher and in every child process.

    SGLang logs and skips a plugin that raises, which would disable the extension in silence: what
    cannot work ends the process instead.
    """
    _apply(
        [
            Hook(f"{SERVER_ARGS}.add_cli_args", "AFTER", _add_cli_args, "flags in --help"),
            Hook(f"{SERVER_ARGS}.from_cli_args", "AFTER", _from_cli_args, "flags"),
        ]
    )
    try:
        inherited = os.environ.get(RESOLVED_VARIABLE)
        if inherited is not None:
            from pydantic import TypeAdapter

            activate(TypeAdapter(TokencakeConfig).validate_json(inherited))
        elif enabled_by_environment():
            activate(load_config())
    except ConfigError as error:
        raise compat.Unsupported(str(error)) from None


def activate(config: TokencakeConfig) -> None:
    """Turns the extension on in this process and the ones it will start. Once per process.

    Raises:
        compat.Unsupported: naming the version, attribute or hook target that does not fit.
    """
    global _active
    if _active is not None:
        return
    compat.check_version()
    compat.check_attributes()
    _register_backend()
    _register_messages()
    _apply(hooks(config))
    _active = config
    os.environ[RESOLVED_VARIABLE] = config.to_json()


def active_config() -> TokencakeConfig | None:
    """The configuration in force in this process; None while the extension is off."""
    return _active


def hooks(config: TokencakeConfig) -> list[Hook]:
    """Every hook of the extension."""
    from tokencake_sglang.engine.scheduler_hooks import SchedulerHooks

    scheduler = SchedulerHooks(config)
    main = _MainHooks(config)
    policy = "sglang.srt.managers.schedule_policy.SchedulePolicy"
    recording = [
        Hook(f"{TOKENIZER_MANAGER}._dispatch_to_scheduler", "BEFORE", main.dispatch, "recording"),
        Hook(f"{TOKENIZER_MANAGER}._stream_one_response", "AROUND", main.respond, "recording"),
    ]
    return [
        Hook(f"{SERVER_ARGS}.resolve_once", "BEFORE", _before_resolve, "cache backend, HiCache"),
        Hook(
            f"{SERVER_ARGS}.check_server_args",
            "BEFORE",
            _before_check,
            "refusals, the cache backend for Runtime",
        ),
        Hook(f"{TOKENIZER_MANAGER}.__init__", "AFTER", main.attach, "front door, HTTP routes"),
        Hook(
            f"{TOKENIZER_MANAGER}.auto_create_handle_loop", "AFTER", main.start, "ZeroMQ and ticks"
        ),
        Hook(f"{TOKENIZER_MANAGER}.generate_request", "AROUND", main.generate, "tags, turns"),
        Hook(
            f"{SCHEDULER}.init_request_dispatcher",
            "AFTER",
            scheduler.init_request_dispatcher,
            "planner, event log",
        ),
        Hook(
            f"{SCHEDULER}._process_hicache_events",
            "AFTER",
            scheduler.process_hicache_events,
            "copies and uploads",
        ),
        Hook(
            f"{SCHEDULER}.get_new_batch_prefill",
            "AFTER",
            scheduler.get_new_batch_prefill,
            "waiting for uploads, the valve for pins",
        ),
        Hook(
            f"{SCHEDULER}.get_prefill_adder_class",
            "AFTER",
            scheduler.get_prefill_adder_class,
            "working set, room for answers, the reserve",
        ),
        Hook(
            f"{SCHEDULER}.run_batch",
            "BEFORE",
            scheduler.run_batch,
            "loads beside the forward under way",
        ),
        Hook(f"{policy}.calc_priority", "AFTER", scheduler.calc_priority, "queue order"),
        *(recording if config.record is not None else ()),
    ]


def _apply(table: list[Hook]) -> None:
    """Registers and applies hooks, then makes sure that each one took.

    SGLang only logs a hook that fails to apply.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in table:
        HookRegistry.register(hook.target, hook.function, HookType[hook.how])
    HookRegistry.apply_hooks()
    for hook in table:
        if hook.target not in HookRegistry._patched:
            raise compat.Unsupported(
                f"the hook on {hook.target} did not take ({hook.feeds} needs it); "
                "SGLang's log above says why"
            )


def _register_backend() -> None:
    from sglang.srt.mem_cache.registry import (
        get_radix_cache_factory,
        register_radix_cache_backend,
    )

    from tokencake_sglang.engine.cache import BACKEND_NAME, create_tokencake_cache

    if get_radix_cache_factory(BACKEND_NAME) is None:
        register_radix_cache_backend(BACKEND_NAME, create_tokencake_cache)


def _register_messages() -> None:
    from sglang.srt.managers import tokenizer_control_mixin
    from sglang.srt.managers.io_struct import hook_custom_types

    from tokencake_sglang.engine.messages import MESSAGE_TYPES, TokencakeStatusReply

    hook_custom_types(*MESSAGE_TYPES)
    tokenizer_control_mixin._COMMUNICATOR_SPECS.append(("tokencake", TokencakeStatusReply))


# -- flags ----------------------------------------------------------------------------------------


_METAVARS = dict.fromkeys(LISTS, "NAME,...") | dict.fromkeys(TABLES, "NAME=NUMBER,...")


def _add_cli_args(_result: None, parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "tokencake",
        "Agent-aware KV cache scheduling. Each option can also be set as TOKENCAKE_<NAME> or in "
        "--tokencake-config.",
    )
    group.add_argument(
        "--enable-tokencake",
        action="store_true",
        help="Turn the extension on; without it the server is stock SGLang.",
    )
    group.add_argument(
        "--tokencake-config", metavar="FILE", help="Options as a .toml or .json file."
    )
    for name, (description, default) in descriptions().items():
        shown = "" if default in (None, (), {}) else f" Default: {default}."
        group.add_argument(
            "--tokencake-" + name.replace("_", "-"),
            choices=["on", "off"] if name in SWITCHES else None,
            metavar=_METAVARS.get(name),
            help=f"{description[0].upper()}{description[1:]}.{shown}",
        )


def _from_cli_args(_server_args: Any, _cls: type, args: argparse.Namespace) -> None:
    flags = {name: getattr(args, f"tokencake_{name}", None) for name in descriptions()}
    file = getattr(args, "tokencake_config", None)
    given = [name for name, value in flags.items() if value is not None]
    try:
        if not (getattr(args, "enable_tokencake", False) or enabled_by_environment()):
            if given or file:
                option = "config" if file else given[0].replace("_", "-")
                raise ConfigError(f"--tokencake-{option} needs --enable-tokencake")
            return
        config = load_config(flags, file=file)
    except ConfigError as error:
        raise compat.Unsupported(str(error)) from None
    activate(config)


# -- server arguments -----------------------------------------------------------------------------


def _settings(cfg: Any) -> dict[str, Any]:
    """The settings of SGLang that the extension needs and ``cfg`` does not have yet."""
    from tokencake_sglang.engine.cache import BACKEND_NAME

    if cfg.radix_cache_backend not in (None, BACKEND_NAME):
        raise compat.Unsupported(
            f"--radix-cache-backend {cfg.radix_cache_backend} cannot be combined with "
            "--enable-tokencake, which brings its own; drop one of the two"
        )
    needed = {"radix_cache_backend": BACKEND_NAME, "enable_hierarchical_cache": True}
    return {name: value for name, value in needed.items() if getattr(cfg, name) != value}


def _before_resolve(server_args: Any) -> None:
    """Command line and ``Engine(**kwargs)``: the record is still open for input."""
    if not getattr(server_args, "_resolution_finished", False):
        # Before SGLang can fail on a combination that the user did not choose.
        compat.check_modes(server_args)
        for name, value in _settings(server_args).items():
            setattr(server_args, name, value)


def _before_check(server_args: Any) -> None:
    """``Runtime`` resolves its record in a parent that loads no plugin; add to the resolution."""
    from sglang.srt.arg_groups.hicache_hook import handle_hicache, handle_hicache_ratio_default
    from sglang.srt.arg_groups.model_override_base import model_config_of
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
    from sglang.srt.arg_groups.platform_hook import handle_platform_defaults

    from tokencake_sglang.engine.durations_file import check_durations_file
    from tokencake_sglang.engine.main_process import check_decision_log
    from tokencake_sglang.engine.policy_planner import check_policy
    from tokencake_sglang.engine.recording import check_record

    cfg = resolving_view(server_args)
    compat.check_modes(cfg)
    compat.check_model(model_config_of(server_args))
    assert _active is not None
    try:
        check_decision_log(_active)
        check_record(_active)
        check_durations_file(_active)
        check_policy(_active)
    except ConfigError as error:
        raise compat.Unsupported(str(error)) from None
    missing = _settings(cfg)
    if not missing:
        return
    declare_resolution(server_args, "tokencake", **missing)
    if "enable_hierarchical_cache" in missing:
        # The steps of SGLang's own resolution that depend on HiCache, in its order.
        handle_hicache_ratio_default(server_args)
        handle_platform_defaults(server_args)
        handle_hicache(server_args)


# -- main process -----------------------------------------------------------------------------------


class _MainHooks:
    """Hooks on the TokenizerManager; each one carries its own MainProcess."""

    def __init__(self, config: TokencakeConfig) -> None:
        self.config = config

    def attach(self, _result: None, tokenizer_manager: Any, *_: Any, **__: Any) -> None:
        from tokencake_sglang.engine.main_process import MainProcess

        try:
            tokenizer_manager.tokencake = MainProcess(self.config, tokenizer_manager)
        except ConfigError as error:
            raise compat.Unsupported(str(error)) from None
        tokenizer_manager.tokencake.add_http_routes()

    def start(self, _result: None, tokenizer_manager: Any) -> None:
        tokenizer_manager.tokencake.start()

    def generate(
        self, generate_request: Callable[..., Any], tokenizer_manager: Any, obj: Any, request=None
    ) -> Any:
        return tokenizer_manager.tokencake.generate(generate_request, obj, request)

    def dispatch(self, tokenizer_manager: Any, message: Any) -> None:
        if main_process := getattr(tokenizer_manager, "tokencake", None):
            main_process.record_dispatch(message)

    def respond(
        self,
        stream_one_response: Callable[..., Any],
        tokenizer_manager: Any,
        obj: Any,
        state: Any,
        request: Any = None,
    ) -> Any:
        answers = stream_one_response(tokenizer_manager, obj=obj, state=state, request=request)
        return tokenizer_manager.tokencake.record_answers(answers, obj, state)
