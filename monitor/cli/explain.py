"""`layerwatch explain`: pictures of where images are unusual."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import detectors
from detectors.images.decode import ImageError
from detectors.images.overlay import outline, overlay
from detectors.images.reading import InputError, read_images
from detectors.images.regions import Region
from monitor.cli.options import IMAGES_HELP, PROFILE_HELP
from monitor.cli.scoring import add_scoring_options, load_to_score
from monitor.config.errors import EXIT_FAILED, as_command_error

SMALLEST_PX, LARGEST_PX = 320, 1024
"""Of the longer side of each of the two pictures: small images are enlarged, large ones reduced."""
GAP_PX, TEXT_PX = 8, 15
UNUSUAL_P = 0.05
MOST_LAYERS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", help=PROFILE_HELP)
    parser.add_argument("images", nargs="+", help=IMAGES_HELP)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    add_scoring_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per line, with the boxes")


def run(args: argparse.Namespace) -> int:
    """One picture per image, named after it; an image that cannot be read is reported on stderr."""
    status, taken = 0, set[str]()
    with as_command_error("explain", InputError, detectors.ProfileError, detectors.HeatMapError, OSError):
        profile = load_to_score(args)
        for name, image in read_images(args.images):
            try:
                found, picture = explain(profile, name, image)
            except ImageError as error:
                sys.stderr.write(f"{name}: {error}\n")
                status = EXIT_FAILED
                continue
            path = args.output / _free_name(name, taken)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            found = {"name": name, "picture": str(path), **found}
            sys.stdout.write((json.dumps(found) if args.json else f"{path}  {_caption(found)}") + "\n")
    return status


def explain(profile: detectors.Profile, name: str, image: bytes) -> tuple[dict[str, Any], Image.Image]:
    prepared = profile.prepare(image, name.encode("utf-8", "backslashreplace"))
    p_values = dict(zip(profile.signals, profile.score([prepared]).p_values[0].tolist(), strict=True))
    layers = sorted((p, signal) for signal, p in p_values.items() if signal.startswith("layer") and p <= UNUSUAL_P)
    (heat,) = profile.heat_maps([prepared])
    boxes = detectors.hottest(heat)
    found = {
        "p": p_values["ood"],
        "layers": {signal: p for p, signal in layers[:MOST_LAYERS]},
        "boxes": [asdict(box) for box in boxes],
    }
    return found, draw(profile.preparer.upright(image), heat, boxes, _caption(found))


def draw(pixels: NDArray[np.uint8], heat: NDArray[np.float32], boxes: Sequence[Region], caption: str) -> Image.Image:
    """The (H, W, 3) image, beside it the same with its map and boxes, and a line of text below."""
    height, width = pixels.shape[:2]
    scale = min(LARGEST_PX / max(height, width), max(1.0, SMALLEST_PX / max(height, width)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    plain = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    hot = Image.fromarray(overlay(np.asarray(plain), heat))
    outline(hot, boxes)
    font = ImageFont.load_default(TEXT_PX)
    text_px = round(font.getlength(caption))
    sheet = Image.new("RGB", (max(2 * size[0], text_px) + 3 * GAP_PX, size[1] + 3 * GAP_PX + TEXT_PX), "white")
    sheet.paste(plain, (GAP_PX, GAP_PX))
    sheet.paste(hot, (2 * GAP_PX + size[0], GAP_PX))
    ImageDraw.Draw(sheet).text((GAP_PX, size[1] + GAP_PX + GAP_PX // 2), caption, "black", font)
    return sheet


def _caption(found: dict[str, Any]) -> str:
    layers = "".join(f", {signal} p {p:.3g}" for signal, p in found["layers"].items())
    boxes = ", ".join(f"{box['unusual']:.1f}" for box in found["boxes"])
    return f"p {found['p']:.3g}{layers}; " + (f"unusual places: {boxes}" if boxes else "no unusual place")


def _free_name(name: str, taken: set[str]) -> Path:
    """`name` as a PNG below the output folder, whatever an archive calls its members; numbered if it is taken."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in {"/", "..", "."}]
    wanted = Path(*parts).with_suffix("") if parts else Path("image")
    free, number = wanted, 1
    while str(free).casefold() in taken:
        number += 1
        free = wanted.with_name(f"{wanted.name}-{number}")
    taken.add(str(free).casefold())
    return free.with_name(f"{free.name}.png")
