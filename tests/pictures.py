"""Pictures drawn for tests: a bright disc on a dim noisy ground, and one with stripes that no reference has."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def draw(rng: np.random.Generator, stripes: bool = False) -> NDArray[np.uint8]:
    """(48, 48, 3): a bright disc on a dim noisy ground; with `stripes` something never seen in the reference."""
    y, x = np.mgrid[:48, :48]
    image = rng.normal(60, 8, (48, 48, 3)) + rng.normal(0, 6, 3)
    radius, centre = rng.uniform(8, 14), rng.uniform(18, 30, 2)
    image[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] += rng.uniform(80, 110)
    if stripes:
        image[(x + y) % 12 < 6] = [200, 30, 180]
    return np.clip(image, 0, 255).astype(np.uint8)


def pictures(seed: int, count: int, stripes: bool = False) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """`count` named pictures; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        yield f"{seed}-{i}", draw(rng, stripes)


def encoded(image: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """The picture as a PNG, JPEG or WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {}))
    return buffer.getvalue()


def at_night(pictures: Iterator[tuple[str, NDArray[np.uint8]]]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The same pictures in a third of the light."""
    return ((f"night-{name}", (image // 3).astype(np.uint8)) for name, image in pictures)
