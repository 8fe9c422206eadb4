"""`layerwatch check-config`: what is wrong with a configuration, and what is odd in it."""

from __future__ import annotations

import argparse
import sys

from detectors.versions.store import is_here
from monitor.cli.options import add_config_option
from monitor.config.checks import check, check_device, check_profiles
from monitor.config.loading import load_config

add_arguments = add_config_option


def run(args: argparse.Namespace) -> int:
    """Refuse what `run` would refuse before it connects; a profile that is not on this machine is only warned of."""
    settings = load_config(args.config)
    where = str(args.config or "defaults")
    warnings = check(settings, where)
    check_device(settings, where)
    addresses = [settings.scoring.profile, *(override.path for override in settings.scoring.profiles)]
    if missing := [address for address in addresses if not is_here(address)]:
        warnings.append(f"{where}: scoring: not here, so not checked with the rules: {', '.join(missing)}")
    else:
        warnings += check_profiles(settings, where)
    sys.stderr.write("".join(f"warning: {line}\n" for line in warnings))
    return 0
