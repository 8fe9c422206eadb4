"""`layerwatch evaluate`: measure detectors, and what a fault costs until the alarm, on the user's own images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.console import Console

import detectors
from detectors.evaluation.tables import evaluation_tables
from detectors.images.reading import InputError, read_images
from detectors.methods.registry import REGISTRY
from monitor.cli.console import open_console
from monitor.cli.fault_alarms import FaultAlarms
from monitor.cli.image_rules import image_rules
from monitor.cli.options import IMAGES_HELP, PROFILE_HELP, add_config_option, parse_share
from monitor.cli.progress import show_progress
from monitor.cli.scoring import add_scoring_options, load_to_score
from monitor.config.errors import as_command_error
from monitor.ingest.scoring.profiles import layout_of
from monitor.rules.simulation import Scenario


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", help=PROFILE_HELP)
    parser.add_argument("--id", nargs="+", required=True, metavar="IMAGES", help=IMAGES_HELP)
    parser.add_argument("--ood", nargs="+", required=True, action="extend", metavar="NAME=IMAGES")
    parser.add_argument(
        "--detectors",
        nargs="+",
        default=["baselines"],
        metavar="NAME",
        help=f"beside the profile's own: baselines (those that need no training), all, {', '.join(REGISTRY)}",
    )
    parser.add_argument(
        "--share",
        type=parse_share,
        default=Scenario.share,
        help="of faulty images, for the number of images until the alarm: 20%% or 0.2",
    )
    add_scoring_options(parser)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained report")
    add_config_option(parser)


def run(args: argparse.Namespace) -> int:
    from detectors.evaluation.evaluate import ID, EvaluationError, evaluate  # noqa: PLC0415 - torch takes seconds
    from detectors.evaluation.report import SHOWN, render  # noqa: PLC0415 - likewise

    errors = Console(stderr=True)
    rules, bucket_s = image_rules(args.config, errors)
    with as_command_error("evaluate", InputError, detectors.ProfileError, EvaluationError):
        ood = dict(_named(text) for text in args.ood)
        profile = load_to_score(args)
        names = [name for text in args.detectors for name in text.split(",")]
        with show_progress(errors, "evaluate") as show:
            result = evaluate(profile, read_images(args.id), ood, names, SHOWN if args.html else 0, show)
            p_values = {name: image_set.scores.p_values for name, image_set in result.sets.items()}
            scenario, step = Scenario(share=args.share), partial(show, "simulating streams with faults")
            alarms = FaultAlarms.of(rules, layout_of(profile), (p_values.pop(ID), p_values), (bucket_s, scenario), step)
    if args.html:
        Path(args.html).write_text(render(result, [alarms.table()]), encoding="utf-8")
    if args.json:
        sys.stdout.write(json.dumps({**result.document(), "alarms": alarms.document()}) + "\n")
        return 0
    console = open_console()
    console.print(result.headline, markup=False, soft_wrap=True)
    for table in evaluation_tables(result):
        console.print(table)
    for part in alarms.table().lines():
        console.print(part)
    return 0


def _named(text: str) -> tuple[str, Iterator[tuple[str, bytes]]]:
    name, equals, path = text.partition("=")
    if not equals or not name:
        raise InputError(f"--ood {text}: expected NAME=IMAGES")
    return name, read_images([path])
