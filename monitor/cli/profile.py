"""`layerwatch profile show`: the model card of a profile."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console


def add_command(commands: Any) -> None:
    """Add `profile` to an argparse subparser table; it sets `handler(args) -> exit status`."""
    profile = commands.add_parser("profile", help="look at a profile").add_subparsers(required=True)
    show = profile.add_parser("show", help="the model card of a profile")
    show.add_argument("profile")
    show.add_argument("--json", action="store_true")
    show.set_defaults(handler=_show)


def _show(args: argparse.Namespace) -> int:
    from detectors.evaluation.tables import profile_tables  # noqa: PLC0415
    from detectors.profile.profile import MANIFEST, Profile, ProfileError  # noqa: PLC0415

    try:
        profile = Profile.load(args.profile, "cpu")
    except ProfileError as error:
        sys.stderr.write(f"layerwatch profile show: {error}\n")
        return 1
    document = json.loads((Path(args.profile) / MANIFEST).read_text(encoding="utf-8"))
    if args.json:
        sys.stdout.write(json.dumps(document) + "\n")
        return 0
    console = Console()
    for table in profile_tables(document, profile.calibration_sizes):
        console.print(table)
    return 0
