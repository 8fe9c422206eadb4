"""The rules about images that `fit`, `calibrate`, `evaluate` and `profile show` speak of."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

import detectors
from monitor.config.errors import ConfigError
from monitor.config.loading import checked_rules, load_config
from monitor.config.schema import Config
from monitor.ingest.scoring.profiles import layout_of
from monitor.rules.calibration_worth import calibration_worth
from monitor.rules.registry import STANDARD_RULES
from monitor.rules.rule import Rule


def image_rules(path: Path | None, console: Console) -> tuple[tuple[Rule, ...], int]:
    """The configured rules that judge by p-values (STANDARD_RULES where there are none), and seconds in a bucket.

    A configuration that cannot be used where it is read (a secret that only the daemon has) is no obstacle: `console`
    says that the standard rules stand in for its own.
    """
    try:
        settings = load_config(path)
        rules = checked_rules(settings)
    except ConfigError as error:
        console.print(f"{error}\nthe standard rules stand in for those of {path or 'the environment'}", markup=False)
        settings, rules = Config(), ()
    return tuple(rule for rule in rules if rule.reads_images) or STANDARD_RULES, settings.buckets.seconds


def print_worth(console: Console, profile: detectors.Profile, path: Path | None) -> None:
    """What the profile's calibration is worth to the rules of the configuration at `path`."""
    rules, _ = image_rules(path, console)
    for line in calibration_worth(layout_of(profile), rules):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
