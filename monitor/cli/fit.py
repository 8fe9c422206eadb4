"""`layerwatch fit`: learn a profile from unlabelled images."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

import detectors
from detectors.images.prepare import AnyImage
from detectors.images.reading import InputError
from detectors.methods.registry import AUTO, REGISTRY
from detectors.profile.spec import BackboneError, BackboneSpec
from monitor.cli.backbone_options import add_backbone_options, backbone_of
from monitor.cli.image_rules import print_worth
from monitor.cli.learning import add_stream_options, command_line, images_of, print_frames, print_left_out
from monitor.cli.options import IMAGES_HELP, parse_count
from monitor.cli.progress import Show, show_progress
from monitor.config.errors import as_command_error

if TYPE_CHECKING:  # torch takes seconds to load
    from detectors.profile.fit import Read

PAPER_LAYERS = {"efficientnet_b4": "0,1,2,3,4", "resnet50": "1,2,3"}
"""Of the preset dlsr-paper: stages 1 to 5 of EfficientNet-B4, 1 to 3 of ResNet-50."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", help=IMAGES_HELP)
    parser.add_argument("-o", "--output", required=True, help="folder of the profile")
    parser.add_argument(
        "--features", metavar="OUT", help="learn from what `archive features` has written, not from images"
    )
    parser.add_argument("--detector", choices=(AUTO, *REGISTRY), help="auto, the default, lets the images choose")
    parser.add_argument(
        "--preset", choices=("dlsr-paper",), help="dlsr-paper: backbone, layers, size and training as published"
    )
    add_backbone_options(parser)
    parser.add_argument("--epochs", type=parse_count, help="passes over the images, for the published scores")
    parser.add_argument("--ordered", action="store_true", help="the images are frames in time order")
    parser.add_argument("--no-heat-maps", action="store_true", help="do not learn where in an image a fault is")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    add_stream_options(parser)


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=True)
    with show_progress(console, "fit") as show:
        show("loading the network", -1.0)  # before torch, which takes seconds to load
        profile = _fitted(args, show)
    profile.manifest["command"] = command_line()
    profile.save(args.output)
    facts = profile.manifest
    print_left_out(console, facts)
    console.print(
        f"{args.output}: profile {profile.fingerprint}, {facts['images']['fit']} images learned, "
        f"{facts['images']['calibration']} to calibrate, {facts['seconds']} s, {facts['peak_memory_mib']} MiB",
        soft_wrap=True,
    )
    print_frames(console, profile.manifest)
    print_worth(console, profile, args.config)
    return 0


def _fitted(args: argparse.Namespace, show: Show) -> detectors.Profile:
    with as_command_error("fit", InputError, detectors.TooFewImagesError, BackboneError, detectors.ProfileError):
        detector, options = _detector(args)
        images, backbone = _source(args)
        fit = detectors.FitOptions(
            detector,
            backbone,
            args.device,
            args.seed,
            detector_options=options,
            ordered=args.ordered,
            heat_maps=not args.no_heat_maps,
        )
        return detectors.fit_profile(images, fit, show)


def _source(args: argparse.Namespace) -> tuple[Iterable[tuple[str, AnyImage]] | Read, BackboneSpec | None]:
    """What to learn from, and by which backbone.

    Raises:
        InputError: options that exclude each other.
    """
    chosen = backbone_of(args)
    if args.features is None:
        return images_of(args), chosen
    options = (
        args.backbone,
        args.weights,
        args.layers,
        args.mean,
        args.std,
        args.image_size,
        args.resize,
        args.decoding,
        args.precision,
    )
    if args.images or args.from_stream or args.max_images or args.preset or any(each is not None for each in options):
        raise InputError("--features has its images and its backbone: give neither, nor --preset or --max-images")
    try:
        from monitor.cli.archive.features import StoredFeatures  # noqa: PLC0415 - optional packages
    except ModuleNotFoundError as error:
        raise InputError(f"--features needs {error.name}: pip install 'layerwatch[ray]'") from error
    stored = StoredFeatures(args.features)
    return stored, replace(stored.spec, grid=args.grid or stored.spec.grid)


def _detector(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from detectors.methods.dlsr_paper import PRESET  # noqa: PLC0415 - torch takes seconds

    published = args.preset == "dlsr-paper"
    name = args.detector or ("dlsr-mfsim" if published else AUTO)
    if name == AUTO and args.grid is not None:
        raise InputError("--grid needs --detector: auto chooses the grid together with the detector")
    options = dict(PRESET) if published else {}
    if (published or args.epochs is not None) and not name.startswith("dlsr-"):
        raise InputError(f"--preset dlsr-paper and --epochs are for dlsr-mse, dlsr-lr and dlsr-mfsim, not {name}")
    if args.epochs is not None:
        options["epochs"] = args.epochs
    return name, options
