"""`layerwatch evaluate`: measure detectors on the user's own ID and OOD images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from detectors.images.reading import InputError, read_images
from detectors.methods.registry import REGISTRY
from monitor.cli.learning import IMAGES


def add_command(commands: Any) -> None:
    """Add `evaluate` to an argparse subparser table; it sets `handler(args) -> exit status`."""
    evaluate = commands.add_parser("evaluate", help="measure detectors on your own ID and OOD images")
    evaluate.add_argument("profile")
    evaluate.add_argument("--id", nargs="+", required=True, metavar="IMAGES", help=IMAGES)
    evaluate.add_argument("--ood", nargs="+", required=True, action="extend", metavar="NAME=IMAGES")
    evaluate.add_argument("--detectors", nargs="+", default=["all"], metavar="NAME", help=f"all, {', '.join(REGISTRY)}")
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--json", action="store_true")
    evaluate.add_argument("--html", metavar="FILE", help="write a self-contained report")
    evaluate.set_defaults(handler=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from detectors.evaluation.evaluate import EvaluationError, evaluate  # noqa: PLC0415
    from detectors.evaluation.tables import evaluation_tables  # noqa: PLC0415
    from detectors.profile.profile import Profile, ProfileError  # noqa: PLC0415

    errors = Console(stderr=True)
    try:
        ood = dict(_named(text) for text in args.ood)
        profile = Profile.load(args.profile, args.device)
        names = [name for text in args.detectors for name in text.split(",")]
        with errors.status("evaluating") as status:
            result = evaluate(profile, read_images(args.id), ood, names, bool(args.html), status.update)
    except (InputError, ProfileError, EvaluationError) as error:
        errors.print(f"layerwatch evaluate: {error}", markup=False, soft_wrap=True)
        return 1
    if args.html:
        from detectors.evaluation.report import render  # noqa: PLC0415

        Path(args.html).write_text(render(result), encoding="utf-8")
    if args.json:
        sys.stdout.write(json.dumps(result.document()) + "\n")
        return 0
    console = Console()
    console.print(result.headline, markup=False, soft_wrap=True)
    for table in evaluation_tables(result):
        console.print(table)
    return 0


def _named(text: str) -> tuple[str, Iterator[tuple[str, bytes]]]:
    name, equals, path = text.partition("=")
    if not equals or not name:
        raise InputError(f"--ood {text}: expected NAME=IMAGES")
    return name, read_images([path])
