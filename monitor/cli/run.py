"""The monitor's part of the command line: `run`, `streams`, `check-config`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.config.errors import EXIT_UNAVAILABLE, ConfigError
from monitor.config.loading import load_config
from monitor.config.schema import Config
from monitor.rules.registry import unsuited_rules, wrong_numbers
from monitor.rules.rule import Rule


def add_commands(commands: Any) -> None:
    """Add this module's commands; each sets `handler(args) -> exit status`."""
    run = commands.add_parser("run", help="the daemon: read, score, count, alert")
    run.set_defaults(handler=_run)
    streams = commands.add_parser("streams", help="per stream: images applied and rejected, OOD share, alerts")
    streams.add_argument("--json", action="store_true")
    streams.set_defaults(handler=_streams)
    check = commands.add_parser("check-config", help="say what is wrong with a configuration, one line per key")
    check.set_defaults(handler=_check_config)
    for command in (run, streams, check):
        add_config_option(command)


def add_config_option(command: argparse.ArgumentParser) -> None:
    """`-c`: the configuration file; config.yaml of the working directory where there is one, else the defaults."""
    path = Path("config.yaml")
    command.add_argument("-c", "--config", type=Path, default=path if path.exists() else None)


def checked_rules(settings: Config) -> tuple[Rule, ...]:
    """The configured rules; ConfigError where the numbers of one are not consistent."""
    if wrong := wrong_numbers(settings.rules, settings.buckets.seconds):
        raise ConfigError(wrong)
    return settings.rules


def _run(args: argparse.Namespace) -> int:
    settings = load_config(args.config)
    from monitor.daemon import Daemon  # noqa: PLC0415 - torch takes seconds; a wrong configuration must not wait
    from monitor.ingest.scoring.profiles import load_profiles  # noqa: PLC0415
    from monitor.notify import ReceiverConfigError  # noqa: PLC0415
    from monitor.store import StoreConfigError, StoreError  # noqa: PLC0415
    from monitor.telemetry.logs import configure_logs  # noqa: PLC0415
    from monitor.web.server import WebServerError  # noqa: PLC0415

    configure_logs(settings.log.level, settings.log.format)
    where = args.config or "defaults"
    rules = checked_rules(settings)
    try:
        profiles = load_profiles(settings.scoring, settings.decoding)
    except ValueError as error:
        raise ConfigError([f"{where}: scoring.profile: {error}"]) from error
    if wrong := unsuited_rules(rules, profiles.layouts):
        raise ConfigError([f"{where}: {line}" for line in wrong])
    try:
        return Daemon(settings, profiles, rules).run()
    except (StoreConfigError, ReceiverConfigError) as error:
        raise ConfigError([f"{where}: {error}"]) from error
    except (StoreError, WebServerError) as error:
        sys.stderr.write(f"layerwatch run: {error}\n")
        return EXIT_UNAVAILABLE


def _check_config(args: argparse.Namespace) -> int:
    from monitor.notify import ReceiverConfigError  # noqa: PLC0415
    from monitor.sources import open_producer  # noqa: PLC0415

    settings = load_config(args.config)
    checked_rules(settings)
    wrong = []
    for receiver in settings.receivers:
        try:
            receiver.build(lambda: open_producer(settings.source_settings())).close()
        except ReceiverConfigError as error:
            wrong.append(f"{args.config or 'defaults'}: {error}")
    if wrong:
        raise ConfigError(wrong)
    return 0


def _streams(args: argparse.Namespace) -> int:
    from monitor.fleet.history import WINDOW_MS  # noqa: PLC0415
    from monitor.fleet.overview import Overview  # noqa: PLC0415
    from monitor.store import StoreConfigError, StoreError, open_store  # noqa: PLC0415

    settings: Config = load_config(args.config)
    try:
        store = open_store(settings.redis, settings.monitor)
        overview = Overview(store, round(settings.buckets.lateness_s * 1000), reach_ms=WINDOW_MS)
        streams = {name: stream.model_dump() for name, stream in overview.snapshot().streams.items()}
        store.close()
    except (StoreError, StoreConfigError) as error:
        sys.stderr.write(f"layerwatch streams: {error}\n")
        return EXIT_UNAVAILABLE
    if args.json:
        sys.stdout.write(json.dumps({"streams": streams}) + "\n")
        return 0
    table = Table("stream", "applied", "rejected", "late", "duplicates", "OOD share", "watermark", "alerts")
    for name, stream in streams.items():
        share = "" if stream["ood_share"] is None else f"{stream['ood_share']:.1%}"
        counts = (str(stream[count]) for count in ("applied", "rejected", "late", "duplicates"))
        table.add_row(Text(name), *counts, share, stream["watermark"] or "", ", ".join(stream["alerts"]) or "-")
    Console().print(table)
    return 0
