"""`layerwatch quantize`: the profile once more, with a network in 8-bit integers."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

import detectors
from detectors.images.reading import InputError, read_images
from monitor.cli.console import open_console
from monitor.cli.learning import print_frames, print_left_out
from monitor.cli.options import IMAGES_HELP
from monitor.cli.progress import show_progress
from monitor.config.errors import as_command_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("images", nargs="+", help=f"{IMAGES_HELP}: those that the profile was fitted on")
    parser.add_argument("-o", "--output", required=True, help="folder of the new profile")
    parser.add_argument(
        "--ood", nargs="+", default=[], metavar="IMAGES", help="also say what it costs on each of these, which are OOD"
    )


def run(args: argparse.Namespace) -> int:
    from detectors.engines.engine import EngineError  # noqa: PLC0415 - torch takes seconds
    from detectors.profile.quantize import compare, quantize, sample_of  # noqa: PLC0415 - likewise

    errors, console = Console(stderr=True), open_console()
    with as_command_error("quantize", InputError, detectors.ProfileError, detectors.TooFewImagesError, EngineError):
        profile = detectors.Profile.load(args.profile, "cpu")
        for path in args.ood:
            next(read_images([path]), None)  # a wrong path is said now, not after minutes
        with show_progress(errors, "quantize") as show:
            show("reading images", -1.0)
            sample = sample_of(profile, read_images(args.images))
            quantised = quantize(profile, sample, read_images(args.images), show)
            quantised.save(args.output)
            show("comparing the two", -1.0)
            found = compare(profile, quantised, sample, {path: read_images([path]) for path in args.ood})
    print_left_out(errors, quantised.manifest)
    print_frames(errors, quantised.manifest)
    table = Table("images", "number", "AUROC before", "in int8", "cost", title="what it costs")
    for name, cost in found.costs.items():
        columns = cost.images, f"{cost.before:.4f}", f"{cost.after:.4f}", f"{cost.before - cost.after:+.4f}"
        table.add_row(name, *map(str, columns))
    console.print(table)
    console.print(
        f"{args.output}: profile {quantised.fingerprint} (was {profile.fingerprint}); its network takes "
        f"{found.speed:.2f} times as many images a second as in float32 on this machine",
        soft_wrap=True,
    )
    if profile.conditions:
        names = ", ".join(sorted(profile.conditions))
        errors.print(f"not carried over: calibrate again for the conditions {names}", soft_wrap=True)
    return 0
