"""Draws docs/images/heat-maps.png: what `layerwatch explain` shows of the demo's parts, two of them with a fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import detectors
from monitor.cli.explain import explain
from monitor.demo.scene import KINDS, draw, jpeg
from monitor.demo.story import reference

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "heat-maps.png"
SEED, LEARNED = 7, 1000
WIDTH_PX = 760


def scratched(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A bright scratch across the part."""
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).line([(88, 120), (104, 98), (112, 92)], (230, 232, 235), width=3)
    return np.asarray(image)


def stained(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A drop of oil on the belt."""
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).ellipse((160, 150, 186, 170), (18, 16, 14))
    return np.asarray(image)


def main() -> None:
    """Fit, draw the parts, explain them and put the pictures below each other."""
    rng = np.random.default_rng(SEED)
    profile = detectors.fit_profile(reference(rng, LEARNED), detectors.FitOptions(device="cpu", seed=SEED))
    gear, washer, bracket = (draw(rng, kind) for kind in KINDS[:3])
    parts = [scratched(gear), stained(washer), bracket]
    sheets = [explain(profile, f"{i}", jpeg(part))[1] for i, part in enumerate(parts)]
    page = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    for i, sheet in enumerate(sheets):
        page.paste(sheet, (0, sum(s.height for s in sheets[:i])))
    page = page.resize((WIDTH_PX, round(page.height * WIDTH_PX / page.width)), Image.Resampling.LANCZOS)
    page.quantize(64, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"{PICTURE.name}: {PICTURE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
