"""The command line: `layerwatch COMMAND`, also `python -m monitor COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from detectors.host_memory import keep_freed_memory
from monitor.config import EXIT_CONFIG, ConfigError
from monitor.logs import configure_logs


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
    import detectors.commands  # noqa: PLC0415
    import monitor.alerts_command  # noqa: PLC0415
    import monitor.collect  # noqa: PLC0415
    import monitor.commands  # noqa: PLC0415
    import monitor.demo  # noqa: PLC0415
    import monitor.produce  # noqa: PLC0415
    import monitor.replay  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="layerwatch", description="Watches image streams for drift.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (detectors.commands, monitor.commands):
        module.add_commands(commands)
    monitor.collect.add_options(commands)
    monitor.demo.add_command(commands)
    monitor.produce.add_command(commands)
    monitor.replay.add_command(commands)
    monitor.alerts_command.add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
