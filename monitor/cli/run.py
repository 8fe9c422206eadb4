"""`layerwatch run`: the daemon."""

from __future__ import annotations

import argparse
import sys

import structlog

from monitor.cli.options import add_config_option
from monitor.config.checks import check, checked_profiles
from monitor.config.errors import EXIT_UNAVAILABLE, ConfigError, as_command_error
from monitor.config.loading import load_config
from monitor.daemon import Daemon
from monitor.ingest.scoring.profiles import Profiles
from monitor.notify.receivers.protocol import ReceiverConfigError
from monitor.store import StoreConfigError, StoreError
from monitor.telemetry.logs import configure_logs
from monitor.web.server import WebServerError

log = structlog.get_logger(__name__)

add_arguments = add_config_option


def run(args: argparse.Namespace) -> int:
    settings = load_config(args.config)
    configure_logs(settings.log.level, settings.log.format)
    where = str(args.config or "defaults")
    for line in check(settings, where):
        log.warning("config.odd", advice=line)

    def load() -> Profiles:
        profiles = checked_profiles(settings, where)
        for line in profiles.oddities:
            log.warning("config.odd", advice=f"{where}: {line}")
        return profiles

    renew = [sys.executable, "-m", "monitor", "profile", "renew-due", *(["-c", where] if args.config else [])]
    try:
        with as_command_error("run", StoreError, WebServerError, status=EXIT_UNAVAILABLE):
            Daemon(settings, load, renew).run()
    except (StoreConfigError, ReceiverConfigError) as error:
        raise ConfigError([f"{where}: {error}"]) from error
    return 0
