"""The command line: `layerwatch COMMAND`, also `python -m monitor COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from detectors.profile.host_memory import keep_freed_memory
from monitor.config.errors import EXIT_CONFIG, ConfigError
from monitor.telemetry.logs import configure_logs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    args = _parser().parse_args(argv)
    keep_freed_memory()
    configure_logs("warning", "console")  # to stderr: stdout belongs to what was asked for; the daemon sets its own
    try:
        status: int = args.handler(args)
    except ConfigError as error:
        sys.stderr.write("".join(f"{line}\n" for line in error.lines))
        return EXIT_CONFIG
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    # the command line is where both packages meet; each module adds its own commands and loads its own weight
    from monitor import demo  # noqa: PLC0415
    from monitor.cli import alerts, calibrate, evaluate, fit, produce, profile, replay, run, score  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="layerwatch", description="Watches image streams for drift.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (fit, score, calibrate, evaluate, profile):
        module.add_command(commands)
    run.add_commands(commands)
    for module in (demo, produce, replay, alerts):
        module.add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
