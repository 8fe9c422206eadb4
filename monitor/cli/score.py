"""`layerwatch score`: one line for each image."""

from __future__ import annotations

import argparse
import json
import sys

import detectors
from detectors.images.decode import ImageError
from detectors.images.reading import InputError, read_images
from monitor.cli.options import IMAGES_HELP
from monitor.config.errors import EXIT_FAILED, as_command_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("images", nargs="+", help=IMAGES_HELP)
    parser.add_argument("--condition", metavar="NAME", help="p-values by the calibration of that condition")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Score image by image; one that cannot be read is reported on stderr and the others are scored."""
    status = 0
    with as_command_error("score", InputError, detectors.ProfileError):
        profile = detectors.Profile.load(args.profile, args.device)
        profile = profile.under(args.condition) if args.condition else profile
        for name, image in read_images(args.images):
            try:
                scores = profile.score([profile.prepare(image, name.encode("utf-8", "backslashreplace"))])
            except ImageError as error:
                sys.stderr.write(f"{name}: {error}\n")
                status = EXIT_FAILED
                continue
            rows = list(zip(profile.signals, scores.values[0].tolist(), scores.p_values[0].tolist(), strict=True))
            if args.json:
                line = json.dumps({"name": name, "signals": {s: {"value": value, "p": p} for s, value, p in rows}})
            else:
                line = f"{name}  " + "  ".join(f"{s}={value:.4g} (p {p:.3g})" for s, value, p in rows)
            sys.stdout.write(line + "\n")
    return status
