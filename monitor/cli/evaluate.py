"""`layerwatch evaluate`: measure detectors on the user's own ID and OOD images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

import detectors
from detectors.evaluation.tables import evaluation_tables
from detectors.images.reading import InputError, read_images
from detectors.methods.registry import REGISTRY
from monitor.cli.console import open_console
from monitor.cli.options import IMAGES_HELP
from monitor.config.errors import as_command_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("--id", nargs="+", required=True, metavar="IMAGES", help=IMAGES_HELP)
    parser.add_argument("--ood", nargs="+", required=True, action="extend", metavar="NAME=IMAGES")
    parser.add_argument("--detectors", nargs="+", default=["all"], metavar="NAME", help=f"all, {', '.join(REGISTRY)}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained report")


def run(args: argparse.Namespace) -> int:
    from detectors.evaluation.evaluate import EvaluationError, evaluate  # noqa: PLC0415 - torch takes seconds
    from detectors.evaluation.report import render  # noqa: PLC0415 - likewise

    with as_command_error("evaluate", InputError, detectors.ProfileError, EvaluationError):
        ood = dict(_named(text) for text in args.ood)
        profile = detectors.Profile.load(args.profile, args.device)
        names = [name for text in args.detectors for name in text.split(",")]
        with Console(stderr=True).status("evaluating") as status:
            result = evaluate(profile, read_images(args.id), ood, names, bool(args.html), status.update)
    if args.html:
        Path(args.html).write_text(render(result), encoding="utf-8")
    if args.json:
        sys.stdout.write(json.dumps(result.document()) + "\n")
        return 0
    console = open_console()
    console.print(result.headline, markup=False, soft_wrap=True)
    for table in evaluation_tables(result):
        console.print(table)
    return 0


def _named(text: str) -> tuple[str, Iterator[tuple[str, bytes]]]:
    name, equals, path = text.partition("=")
    if not equals or not name:
        raise InputError(f"--ood {text}: expected NAME=IMAGES")
    return name, read_images([path])
