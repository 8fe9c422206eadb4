"""The options of `fit` and `archive features` that choose a backbone."""

from __future__ import annotations

import argparse
import ast
from dataclasses import replace
from typing import Any

from detectors.images.prepare import DECODINGS, RESIZES, InputSize
from detectors.images.reading import InputError
from detectors.profile.spec import FIT_PRECISIONS, BackboneSpec
from monitor.cli.options import parse_count

PAPER_LAYERS = {"efficientnet_b4": "0,1,2,3,4", "resnet50": "1,2,3"}
"""Of the preset dlsr-paper: stages 1 to 5 of EfficientNet-B4, 1 to 3 of ResNet-50."""


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """`--backbone` and what belongs to it."""
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
    parser.add_argument(
        "--decoding",
        choices=DECODINGS,
        help="full (default): every pixel is decoded and measured; scaled: no more than the image size needs, "
        "several times as fast for camera images",
    )
    parser.add_argument(
        "--precision", choices=FIT_PRECISIONS, help="of the backbone, here and wherever the profile scores"
    )


def backbone_of(args: argparse.Namespace) -> BackboneSpec | None:
    """What the options of `add_backbone_options` and `--preset` say; None for the embedded one as it is.

    Raises:
        InputError: options that need `--backbone`, without it.
    """
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
            decoding=args.decoding or own.decoding,
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
        decoding=args.decoding or "full",
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
