"""`layerwatch run`: the daemon."""

from __future__ import annotations

import argparse

from monitor.cli.options import add_config_option
from monitor.config.errors import EXIT_UNAVAILABLE, ConfigError, as_command_error
from monitor.config.loading import check_web, checked_rules, load_config
from monitor.daemon import Daemon
from monitor.ingest.scoring.profiles import load_profiles
from monitor.notify.receivers.protocol import ReceiverConfigError
from monitor.rules.registry import unsuited_rules
from monitor.store import StoreConfigError, StoreError
from monitor.telemetry.logs import configure_logs
from monitor.web.server import WebServerError

add_arguments = add_config_option


def run(args: argparse.Namespace) -> int:
    settings = load_config(args.config)
    configure_logs(settings.log.level, settings.log.format)
    rules = checked_rules(settings)
    where = str(args.config or "defaults")
    check_web(settings, where)
    try:
        profiles = load_profiles(settings.scoring, settings.decoding)
    except ValueError as error:
        raise ConfigError([f"{where}: scoring.profile: {error}"]) from error
    if wrong := unsuited_rules(rules, profiles.layouts):
        raise ConfigError([f"{where}: {line}" for line in wrong])
    try:
        with as_command_error("run", StoreError, WebServerError, status=EXIT_UNAVAILABLE):
            Daemon(settings, profiles, rules).run()
    except (StoreConfigError, ReceiverConfigError) as error:
        raise ConfigError([f"{where}: {error}"]) from error
    return 0
