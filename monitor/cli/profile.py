"""`layerwatch profile show`: the model card of a profile."""

from __future__ import annotations

import argparse
import json
import sys

import detectors
from detectors.evaluation.tables import profile_tables
from monitor.cli.console import open_console
from monitor.cli.image_rules import print_worth
from monitor.cli.options import add_config_option
from monitor.config.errors import as_command_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    show = parser.add_subparsers(required=True).add_parser("show", help="the model card of a profile")
    show.add_argument("profile")
    show.add_argument("--json", action="store_true")
    add_config_option(show)


def run(args: argparse.Namespace) -> int:
    with as_command_error("profile show", detectors.ProfileError):
        profile = detectors.Profile.load(args.profile, "cpu")
    if args.json:
        sys.stdout.write(json.dumps(profile.manifest) + "\n")
        return 0
    console = open_console()
    for table in profile_tables(profile.manifest, profile.calibration_sizes):
        console.print(table)
    print_worth(console, profile, args.config)
    return 0
