"""`layerwatch fit`: learn a profile from unlabelled images."""

from __future__ import annotations

import argparse
import ast
from dataclasses import replace
from typing import Any

from rich.console import Console

from detectors.images.reading import InputError
from detectors.methods.registry import REGISTRY
from detectors.profile.spec import PRECISIONS, BackboneError, BackboneSpec
from monitor.cli.learning import IMAGES, add_stream_options, images_of, print_left_out, progress_bar


def add_command(commands: Any) -> None:
    """Add `fit` to an argparse subparser table; it sets `handler(args) -> exit status`."""
    fit = commands.add_parser("fit", help="learn a profile from unlabelled images")
    fit.add_argument("images", nargs="*", help=IMAGES)
    fit.add_argument("-o", "--output", required=True, help="folder of the profile")
    fit.add_argument("--detector", choices=tuple(REGISTRY), help="dlsr unless a preset says otherwise")
    fit.add_argument(
        "--preset", choices=("dlsr-paper",), help="dlsr-paper: backbone, layers, size and training as published"
    )
    fit.add_argument("--backbone", metavar="NAME", help="a timm model; the embedded one by default")
    fit.add_argument("--weights", help="embedded, hub (timm's own), random, or a .safetensors or .pth file")
    fit.add_argument("--layers", help="indices (1,2,3) or strides (/4,/8,/16) of the feature layers")
    fit.add_argument("--backbone-arg", action="append", default=[], metavar="KEY=VALUE", help="for timm.create_model")
    fit.add_argument("--mean", type=_triple, metavar="R,G,B", help="of pixels in [0, 1]")
    fit.add_argument("--std", type=_triple, metavar="R,G,B")
    fit.add_argument("--image-size", type=int, metavar="PX", help="side of the square input")
    fit.add_argument("--precision", choices=PRECISIONS, help="of the backbone, here and wherever the profile scores")
    fit.add_argument("--epochs", type=int, help="passes over the images, for the published scores")
    fit.add_argument("--ordered", action="store_true", help="the images are frames in time order")
    fit.add_argument("--device", default="auto")
    fit.add_argument("--seed", type=int, default=0)
    add_stream_options(fit)
    fit.set_defaults(handler=_fit)


def _fit(args: argparse.Namespace) -> int:
    from detectors.profile.fit import (  # noqa: PLC0415 - torch takes seconds
        FitOptions,
        TooFewImagesError,
        fit_profile,
    )

    console = Console(stderr=True)
    try:
        detector, options = _detector(args)
        backbone = _backbone(args)
        fit = FitOptions(detector, backbone, args.device, args.seed, detector_options=options, ordered=args.ordered)
        with progress_bar(console) as show:
            profile = fit_profile(images_of(args), fit, show)
    except (InputError, TooFewImagesError, BackboneError) as error:
        console.print(f"layerwatch fit: {error}", markup=False, soft_wrap=True)
        return 1
    profile.save(args.output)
    facts = profile.manifest
    print_left_out(console, facts)
    console.print(
        f"{args.output}: profile {profile.fingerprint}, {facts['images']['fit']} images learned, "
        f"{facts['images']['calibration']} to calibrate, {facts['seconds']} s, {facts['peak_memory_mib']} MiB"
    )
    return 0


def _detector(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from detectors.methods.dlsr_paper import PRESET  # noqa: PLC0415

    published = args.preset == "dlsr-paper"
    name = args.detector or ("dlsr-mfsim" if published else "dlsr")
    options = dict(PRESET) if published else {}
    if (published or args.epochs is not None) and not name.startswith("dlsr-"):
        raise InputError(f"--preset dlsr-paper and --epochs are for dlsr-mse, dlsr-lr and dlsr-mfsim, not {name}")
    if args.epochs is not None:
        options["epochs"] = args.epochs
    return name, options


def _backbone(args: argparse.Namespace) -> BackboneSpec | None:
    published = args.preset == "dlsr-paper"
    given = (args.weights, args.layers, args.mean, args.std, args.image_size)
    if args.backbone is None and not published:
        if any(value is not None for value in given) or args.backbone_arg:
            raise InputError("--weights, --layers, --backbone-arg, --mean, --std and --image-size need --backbone")
        return None if args.precision is None else replace(BackboneSpec.embedded(), precision=args.precision)
    model = args.backbone or "efficientnet_b4"
    # The layers of the paper: stages 1 to 5 of EfficientNet-B4, 1 to 3 of ResNet-50.
    paper_layers = {"efficientnet_b4": "0,1,2,3,4", "resnet50": "1,2,3"}.get(model, "") if published else ""
    layers = args.layers or paper_layers
    strides = tuple(int(part.removeprefix("/")) for part in layers.split(",")) if layers.startswith("/") else ()
    return BackboneSpec(
        model=model,
        weights=args.weights or "hub",
        layers=() if strides or not layers else tuple(int(part) for part in layers.split(",")),
        strides=strides,
        mean=args.mean,
        std=args.std,
        input_px=args.image_size or (224 if published else None),
        args=dict(_argument(text) for text in args.backbone_arg),
        precision=args.precision or "float32",
    )


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--backbone-arg {text}: expected KEY=VALUE")
    try:
        return key, ast.literal_eval(value)  # numbers, True, None; anything else is taken as text
    except (ValueError, SyntaxError):
        return key, value


def _triple(text: str) -> tuple[float, float, float]:
    red, green, blue = (float(part) for part in text.split(","))
    return red, green, blue
