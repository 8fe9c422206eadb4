"""`layerwatch calibrate`: calibrate a profile on new ID images, without learning again."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from detectors.images.reading import InputError
from monitor.cli.learning import IMAGES, add_stream_options, images_of, print_left_out, progress_bar


def add_command(commands: Any) -> None:
    """Add `calibrate` to an argparse subparser table; it sets `handler(args) -> exit status`."""
    calibrate = commands.add_parser("calibrate", help="calibrate a profile on new ID images, without learning again")
    calibrate.add_argument("profile")
    calibrate.add_argument("images", nargs="*", help=IMAGES)
    calibrate.add_argument("-o", "--output", required=True, help="folder of the new profile")
    calibrate.add_argument("--device", default="auto")
    calibrate.add_argument("--ordered", action="store_true", help="the images are frames in time order")
    add_stream_options(calibrate)
    calibrate.set_defaults(handler=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    from detectors.profile.fit import TooFewImagesError, recalibrate  # noqa: PLC0415
    from detectors.profile.profile import Profile, ProfileError  # noqa: PLC0415

    console = Console(stderr=True)
    try:
        profile = Profile.load(args.profile, args.device)
        before = profile.fingerprint
        with progress_bar(console) as show:
            recalibrate(profile, images_of(args), args.ordered, show)
    except (InputError, ProfileError, TooFewImagesError) as error:
        console.print(f"layerwatch calibrate: {error}", markup=False, soft_wrap=True)
        return 1
    profile.save(args.output)
    print_left_out(console, profile.manifest)
    count = profile.manifest["images"]["calibration"]
    console.print(f"{args.output}: profile {profile.fingerprint} (was {before}), calibrated on {count} images")
    return 0
