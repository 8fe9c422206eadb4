"""`layerwatch calibrate`: calibrate a profile on new ID images, without learning again."""

from __future__ import annotations

import argparse

from rich.console import Console

import detectors
from detectors.images.reading import InputError
from detectors.profile.files import check_condition
from detectors.versions.store import is_folder
from monitor.cli.image_rules import print_worth
from monitor.cli.learning import (
    Wanted,
    add_stream_options,
    command_line,
    images_of,
    of_condition,
    print_frames,
    print_left_out,
)
from monitor.cli.options import IMAGES_HELP, PROFILE_HELP
from monitor.cli.progress import show_progress
from monitor.cli.scoring import add_scoring_options, load_to_score
from monitor.config.errors import as_command_error
from monitor.config.schema import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", help=PROFILE_HELP)
    parser.add_argument("images", nargs="*", help=IMAGES_HELP)
    parser.add_argument("-o", "--output", help="folder of the new profile; with --condition the profile itself")
    parser.add_argument(
        "--condition",
        metavar="NAME",
        help="the images are of this condition (night): they calibrate what judges images of it, and nothing else",
    )
    add_scoring_options(parser)
    parser.add_argument("--ordered", action="store_true", help="the images are frames in time order")
    add_stream_options(parser)


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=True)
    with as_command_error("calibrate", InputError, detectors.ProfileError, detectors.TooFewImagesError):
        if not args.output and not args.condition:
            raise InputError("-o names the folder of the new profile; only --condition adds to the profile itself")
        if not args.output and not is_folder(args.profile):
            raise InputError("-o names the folder of the new profile: a version in a store does not change")
        condition = check_condition(args.condition) if args.condition else ""
        profile = load_to_score(args)
        before, folder = profile.fingerprint, args.output or args.profile

        def wanted(settings: Config) -> Wanted:
            return of_condition(settings, args.from_stream, condition, profile)

        with show_progress(console, "calibrate") as show:
            images = images_of(args, wanted) if condition else images_of(args)
            detectors.recalibrate(profile, images, args.ordered, show, condition)
    profile.manifest["command"] = command_line()
    profile.save(folder)
    calibrated = profile.under(condition) if condition else profile
    print_left_out(console, calibrated.manifest)
    count = calibrated.manifest["images"]["calibration"]
    what = f", condition {condition} ({calibrated.fingerprint})" if condition else f" (was {before})"
    console.print(f"{folder}: profile {profile.fingerprint}{what}, calibrated on {count} images", soft_wrap=True)
    print_frames(console, calibrated.manifest)
    print_worth(console, calibrated, args.config)
    return 0
