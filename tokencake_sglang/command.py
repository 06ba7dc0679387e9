"""The command ``tokencake``: one module for each subcommand, imported when it is asked for."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "replay": (
        "tokencake_sglang.replay.command",
        "what SGLang's own settings and this extension would do for a trace, in virtual time",
    ),
    "calibrate": (
        "tokencake_sglang.timewarp.calibration",
        "measure this machine's GPU and link, and write a hardware profile for replay",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="tokencake", description="Tools beside an SGLang server with tokencake_sglang."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, what) in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=what, description=f"{what[0].upper()}{what[1:]}."
        )
        if given[:1] == [name]:
            command = importlib.import_module(module)
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    parsed = parser.parse_args(given)
    return int(parsed.run(parsed))


if __name__ == "__main__":
    sys.exit(main())
