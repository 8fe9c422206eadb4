"""The command line: `layerwatch COMMAND`, also `python -m monitor COMMAND`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from monitor.config import EXIT_CONFIG, Config, ConfigError, load_config

EXIT_UNAVAILABLE = 69
"""EX_UNAVAILABLE of sysexits.h: a server that is needed does not answer."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    args = _parser().parse_args(argv)
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
    from detectors.commands import add_commands  # noqa: PLC0415 - the command line is where both packages meet

    parser = argparse.ArgumentParser(prog="layerwatch", description="Watches image streams for drift.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_commands(commands)
    check = commands.add_parser("check-config", help="say what is wrong with a configuration, one line per key")
    check.set_defaults(handler=_check_config)
    streams = commands.add_parser("streams", help="images applied and rejected per stream")
    streams.add_argument("--json", action="store_true")
    streams.set_defaults(handler=_streams)
    for command in (check, streams):
        command.add_argument("-c", "--config", type=Path, default=_default_config())
    return parser


def _default_config() -> Path | None:
    path = Path("config.yaml")
    return path if path.exists() else None


def _check_config(args: argparse.Namespace) -> int:
    load_config(args.config)
    return 0


def _streams(args: argparse.Namespace) -> int:
    from monitor.store import StoreConfigError, StoreError, open_store  # noqa: PLC0415

    config: Config = load_config(args.config)
    try:
        store = open_store(config.redis, config.monitor)
        totals = store.totals(store.known_partitions())
        store.close()
    except (StoreError, StoreConfigError) as error:
        sys.stderr.write(f"layerwatch streams: {error}\n")
        return EXIT_UNAVAILABLE
    rows = {
        stream: {"applied": t.applied, "rejected": t.rejected, "late": t.late, "duplicates": t.duplicates}
        for stream, t in sorted(totals.items())
    }
    if args.json:
        sys.stdout.write(json.dumps({"streams": rows}) + "\n")
        return 0
    for stream, row in rows.items():
        sys.stdout.write(f"{stream}: " + ", ".join(f"{count} {name}" for name, count in row.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
