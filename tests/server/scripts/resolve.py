"""Resolves command lines as the launcher does and prints what became of each, as JSON.

Argument: a JSON list of ``{"argv": [...], "environment": {...}}``. All in one process, since
importing SGLang takes longer than everything else; every record is a new one.
"""

import contextlib
import io
import json
import os
import sys

from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import prepare_server_args


def outcome(argv: list[str], environment: dict[str, str]) -> str:
    """The line with which the launcher would end; "started" where it would go on."""
    os.environ.update(environment)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            server_args = prepare_server_args([*argv, "--log-level", "error"])
            server_args.resolve_once()
            server_args.check_server_args()
    except SystemExit as end:
        return end.code if isinstance(end.code, str) else errors.getvalue().splitlines()[-1]
    except Exception as error:  # noqa: BLE001 - SGLang's own refusals are of many kinds
        return f"{type(error).__name__}: {error}"
    finally:
        for name in environment:
            del os.environ[name]
    return "started"


if __name__ == "__main__":
    load_plugins()
    outcomes = [outcome(**command) for command in json.loads(sys.argv[1])]
    print(json.dumps(outcomes))
