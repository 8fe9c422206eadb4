"""`layerwatch profile show`: the model card of a profile."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from detectors.evaluation.tables import profile_tables
from monitor.config.errors import as_command_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One action, `show`."""
    show = parser.add_subparsers(required=True).add_parser("show", help="the model card of a profile")
    show.add_argument("profile")
    show.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Print the manifest as tables or as it is."""
    from detectors.profile.profile import MANIFEST, Profile, ProfileError  # noqa: PLC0415 - torch takes seconds

    with as_command_error("profile show", ProfileError):
        profile = Profile.load(args.profile, "cpu")
    document = json.loads((Path(args.profile) / MANIFEST).read_text(encoding="utf-8"))
    if args.json:
        sys.stdout.write(json.dumps(document) + "\n")
        return 0
    console = Console()
    for table in profile_tables(document, profile.calibration_sizes):
        console.print(table)
    return 0
