"""`layerwatch fit`: learn a profile from unlabelled images."""

from __future__ import annotations

import argparse
import ast
from dataclasses import replace
from typing import Any

from rich.console import Console

import detectors
from detectors.images.prepare import RESIZES, InputSize
from detectors.images.reading import InputError
from detectors.methods.registry import AUTO, REGISTRY
from detectors.profile.spec import PRECISIONS, BackboneError, BackboneSpec
from monitor.cli.image_rules import print_worth
from monitor.cli.learning import add_stream_options, images_of, print_frames, print_left_out
from monitor.cli.options import IMAGES_HELP, parse_count
from monitor.cli.progress import show_progress
from monitor.config.errors import as_command_error

PAPER_LAYERS = {"efficientnet_b4": "0,1,2,3,4", "resnet50": "1,2,3"}
"""Of the preset dlsr-paper: stages 1 to 5 of EfficientNet-B4, 1 to 3 of ResNet-50."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", help=IMAGES_HELP)
    parser.add_argument("-o", "--output", required=True, help="folder of the profile")
    parser.add_argument("--detector", choices=(AUTO, *REGISTRY), help="auto, the default, lets the images choose")
    parser.add_argument(
        "--preset", choices=("dlsr-paper",), help="dlsr-paper: backbone, layers, size and training as published"
    )
    parser.add_argument("--backbone", metavar="NAME", help="a timm model; the embedded one by default")
    parser.add_argument("--weights", help="embedded, hub (timm's own), random, or a .safetensors or .pth file")
    parser.add_argument("--layers", help="indices (1,2,3) or strides (/4,/8,/16) of the feature layers")
    parser.add_argument(
        "--backbone-arg", action="append", default=[], metavar="KEY=VALUE", help="for timm.create_model"
    )
    parser.add_argument(
        "--grid", type=parse_count, metavar="N", help="average narrow layers over N x N cells; auto chooses it"
    )
    parser.add_argument("--mean", type=_triple, metavar="R,G,B", help="of pixels in [0, 1]")
    parser.add_argument("--std", type=_triple, metavar="R,G,B")
    parser.add_argument(
        "--image-size", type=_image_size, metavar="PX", help="side of a square input, or HEIGHTxWIDTH, such as 160x320"
    )
    parser.add_argument(
        "--resize",
        choices=RESIZES,
        help="stretch (default) the image to that size; letterbox keeps its proportions between bars; "
        "crop keeps them and the middle alone",
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="of the backbone, here and wherever the profile scores")
    parser.add_argument("--epochs", type=parse_count, help="passes over the images, for the published scores")
    parser.add_argument("--ordered", action="store_true", help="the images are frames in time order")
    parser.add_argument("--no-heat-maps", action="store_true", help="do not learn where in an image a fault is")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    add_stream_options(parser)


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=True)
    with as_command_error("fit", InputError, detectors.TooFewImagesError, BackboneError):
        detector, options = _detector(args)
        backbone = _backbone(args)
        fit = detectors.FitOptions(
            detector,
            backbone,
            args.device,
            args.seed,
            detector_options=options,
            ordered=args.ordered,
            heat_maps=not args.no_heat_maps,
        )
        with show_progress(console, "fit") as show:
            profile = detectors.fit_profile(images_of(args), fit, show)
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


def _backbone(args: argparse.Namespace) -> BackboneSpec | None:
    published = args.preset == "dlsr-paper"
    if args.backbone is None and not published:
        if any(given is not None for given in (args.weights, args.layers, args.mean, args.std)) or args.backbone_arg:
            raise InputError("--weights, --layers, --backbone-arg, --mean and --std need --backbone")
        own = BackboneSpec.embedded()
        return replace(
            own,
            precision=args.precision or own.precision,
            input_px=args.image_size or own.input_px,
            grid=args.grid or own.grid,
            resize=args.resize or own.resize,
        )
    model = args.backbone or "efficientnet_b4"
    layers = args.layers or (PAPER_LAYERS.get(model, "") if published else "")
    prefix = "/" if layers.startswith("/") else ""
    numbers = tuple(int(part.removeprefix(prefix)) for part in layers.split(",")) if layers else ()
    return BackboneSpec(
        model=model,
        weights=args.weights or "hub",
        layers=() if prefix else numbers,
        strides=numbers if prefix else (),
        mean=args.mean,
        std=args.std,
        input_px=args.image_size or (224 if published else None),
        args=dict(_argument(text) for text in args.backbone_arg),
        precision=args.precision or "float32",
        grid=args.grid or 1,
        resize=args.resize or "stretch",
    )


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--backbone-arg {text}: expected KEY=VALUE")
    try:
        return key, ast.literal_eval(value)  # numbers, True, None; anything else is taken as text
    except (ValueError, SyntaxError):
        return key, value


def _image_size(text: str) -> InputSize:
    sides = [parse_count(side) for side in text.split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"must be a side, or HEIGHTxWIDTH (got {text!r})")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _triple(text: str) -> tuple[float, float, float]:
    red, green, blue = (float(part) for part in text.split(","))
    return red, green, blue
