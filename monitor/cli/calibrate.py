"""`layerwatch calibrate`: calibrate a profile on new ID images, without learning again."""

from __future__ import annotations

import argparse

from rich.console import Console

import detectors
from detectors.images.reading import InputError
from monitor.cli.image_rules import print_worth
from monitor.cli.learning import add_stream_options, images_of, print_left_out
from monitor.cli.options import IMAGES_HELP
from monitor.cli.progress import show_progress
from monitor.config.errors import as_command_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("images", nargs="*", help=IMAGES_HELP)
    parser.add_argument("-o", "--output", required=True, help="folder of the new profile")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--ordered", action="store_true", help="the images are frames in time order")
    add_stream_options(parser)


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=True)
    with as_command_error("calibrate", InputError, detectors.ProfileError, detectors.TooFewImagesError):
        profile = detectors.Profile.load(args.profile, args.device)
        before = profile.fingerprint
        with show_progress(console, "calibrate") as show:
            detectors.recalibrate(profile, images_of(args), args.ordered, show)
    profile.save(args.output)
    print_left_out(console, profile.manifest)
    count = profile.manifest["images"]["calibration"]
    console.print(
        f"{args.output}: profile {profile.fingerprint} (was {before}), calibrated on {count} images", soft_wrap=True
    )
    print_worth(console, profile, args.config)
    return 0
