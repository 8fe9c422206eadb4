"""`layerwatch score`: one line for each image."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice

import detectors
from detectors.images.decode import ImageError
from detectors.images.prepare import Prepared
from detectors.images.reading import InputError, read_images
from monitor.cli.options import IMAGES_HELP, PROFILE_HELP
from monitor.cli.scoring import add_scoring_options, load_to_score
from monitor.config.errors import EXIT_FAILED, as_command_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", help=PROFILE_HELP)
    parser.add_argument("images", nargs="+", help=IMAGES_HELP)
    parser.add_argument("--condition", metavar="NAME", help="p-values by the calibration of that condition")
    add_scoring_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Score all images; one that cannot be read is reported on stderr and the others are scored."""
    from detectors.profile.steady import BATCH, steady_scores  # noqa: PLC0415 - torch takes seconds

    status = 0
    with as_command_error("score", InputError, detectors.ProfileError):
        profile = load_to_score(args)
        profile = profile.under(args.condition) if args.condition else profile
        images = read_images(args.images)
        while batch := list(islice(images, BATCH)):
            usable: list[tuple[str, Prepared]] = []
            for name, image in batch:
                try:
                    usable.append((name, profile.prepare(image, name.encode("utf-8", "backslashreplace"))))
                except ImageError as error:
                    sys.stderr.write(f"{name}: {error}\n")
                    status = EXIT_FAILED
            if usable:
                scores = steady_scores(profile, [image for _, image in usable])
                for (name, _), values, p_values in zip(usable, scores.values, scores.p_values, strict=True):
                    rows = list(zip(profile.signals, values.tolist(), p_values.tolist(), strict=True))
                    sys.stdout.write(_line(name, rows, args.json) + "\n")
    return status


def _line(name: str, rows: Sequence[tuple[str, float, float]], as_json: bool) -> str:
    """Of (signal, value, p-value)."""
    if as_json:
        return json.dumps({"name": name, "signals": {s: {"value": value, "p": p} for s, value, p in rows}})
    return f"{name}  " + "  ".join(f"{s}={value:.4g} (p {p:.3g})" for s, value, p in rows)
