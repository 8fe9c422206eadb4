"""`layerwatch check-config`: what is wrong with a configuration."""

from __future__ import annotations

import argparse

from monitor.cli.options import add_config_option
from monitor.config.errors import ConfigError
from monitor.config.loading import check_web, checked_rules, load_config
from monitor.notify.receivers.protocol import ReceiverConfigError
from monitor.sources import open_producer

add_arguments = add_config_option


def run(args: argparse.Namespace) -> int:
    """Check what can be checked without a server and without the profile."""
    settings = load_config(args.config)
    checked_rules(settings)
    check_web(settings, str(args.config or "defaults"))
    wrong = []
    for receiver in settings.receivers:
        try:
            receiver.build(lambda: open_producer(settings.source_settings())).close()
        except ReceiverConfigError as error:
            wrong.append(f"{args.config or 'defaults'}: {error}")
    if wrong:
        raise ConfigError(wrong)
    return 0
