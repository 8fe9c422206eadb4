"""The command line: `layerwatch COMMAND`, also `python -m monitor COMMAND`.

A command is a module with `add_arguments(parser)` and `run(args) -> exit status`. It is imported only when its command
is given, so that no command waits for the imports of another.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import cast

from detectors.profile.host_memory import keep_freed_memory
from monitor.config.errors import CommandError

COMMANDS = {
    "fit": ("monitor.cli.fit", "learn a profile from unlabelled images"),
    "score": ("monitor.cli.score", "score images: one line each"),
    "archive": ("monitor.cli.archive.command", "score millions of images on Ray, and report their drift"),
    "explain": ("monitor.cli.explain", "show where images are unusual: one picture each"),
    "calibrate": ("monitor.cli.calibrate", "calibrate a profile on new ID images, without learning again"),
    "quantize": ("monitor.cli.quantize", "a profile once more, with a network in 8-bit integers"),
    "evaluate": ("monitor.cli.evaluate", "measure detectors on your own ID and OOD images"),
    "profile": ("monitor.cli.profile", "look at a profile"),
    "run": ("monitor.cli.run", "the daemon: read, score, count, alert"),
    "streams": ("monitor.cli.streams", "per stream: images applied and rejected, OOD share, alerts"),
    "check-config": ("monitor.cli.check_config", "say what is wrong with a configuration, one line per key"),
    "demo": ("monitor.demo.command", "fit, watch, drift and recover on this machine; no server needed"),
    "produce": ("monitor.cli.produce", "write images to the configured source, one record each"),
    "replay": ("monitor.cli.replay", "what the rules say about a span of the log; changes nothing"),
    "alerts": ("monitor.cli.alerts", "what fires, and silences"),
    "feedback": ("monitor.cli.feedback", "say what alerts were; export it, and the images it was said of"),
}
"""Name -> (module, what `layerwatch --help` says about it)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    given = [word for word in words if not word.startswith("-")][:1]
    if given:
        _load_structlog()
    args = build_parser(given).parse_args(words)

    from monitor.telemetry.logs import configure_logs  # noqa: PLC0415 - structlog takes far longer than --help

    keep_freed_memory()
    configure_logs("warning", "console")  # to stderr: stdout belongs to what was asked for; the daemon sets its own
    try:
        status: int = args.run(args)
    except CommandError as error:
        sys.stderr.write(f"{error}\n")
        return error.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def build_parser(with_arguments: Iterable[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of all commands; those in `with_arguments` are imported and can be parsed, the others only listed."""
    parser = argparse.ArgumentParser(prog="layerwatch", description="Watches image streams for drift.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, meaning) in COMMANDS.items():
        command = commands.add_parser(name, help=meaning)
        if name in with_arguments:
            implementation = importlib.import_module(module)
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    return parser


def _load_structlog() -> None:
    """Load structlog without rich, by which it would draw tracebacks that `configure_logs` prints as plain text.

    rich is a fifth of all that `check-config` imports; commands that print tables load it themselves.
    """
    rich = sys.modules.get("rich")
    sys.modules["rich"] = cast(ModuleType, None)  # what a package looks like that is not installed
    try:
        import structlog  # noqa: F401, PLC0415 - see above
    finally:
        del sys.modules["rich"]
        if rich:
            sys.modules["rich"] = rich


if __name__ == "__main__":
    sys.exit(main())
