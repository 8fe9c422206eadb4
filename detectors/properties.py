"""Image properties: what a sensor fault moves before any learned feature does. No torch; runs where images are decoded.

Everything is measured on the original image brought down to at most WORKING_PX a side (whole-number box averages, so
that a larger sensor does not look sharper or noisier), except `noise` and `row_jump`, which a reduction would average
away and which look at native pixels of a central crop. Luma is Rec. 601: .299 R + .587 G + .114 B, in [0, 255].

| name | unit, range | what it is |
|---|---|---|
| luma_p1, luma_p50, luma_p99 | luma, 0-255 | percentiles of luma: black level, exposure, white level |
| clipped_low, clipped_high | share, 0-1 | pixels with luma <= 2, >= 253 |
| contrast | luma, 0-127.5 | standard deviation of luma (RMS contrast) |
| sharpness | luma^2, >= 0 | mean squared difference of neighbouring pixels of the reduced image (edge energy) |
| entropy | bits, 0-8 | entropy of the luma histogram |
| saturation | share, 0-1 | mean of (max - min) / max over the channels; exactly 0 for grey, however it is stored |
| red_ratio, blue_ratio | log2, about -8 to 8 | log2 of mean red (blue) over mean green, each plus one: colour cast |
| noise | luma, >= 0 | noise sd by the Laplacian mask of Immerkaer (1996, "Fast noise variance estimation") |
| row_jump | luma, 0-255 | largest jump of the mean of a row against the mean of its two neighbours: dead or hot rows |
| width, height | pixels | as decoded |
| aspect_ratio | log2 | log2(width / height) |
| bytes_per_pixel | log2 | log2 of encoded bytes per pixel (array bytes where nothing is encoded): compression |
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NAMES = (
    "luma_p1", "luma_p50", "luma_p99", "clipped_low", "clipped_high", "contrast", "sharpness", "entropy",
    "saturation", "red_ratio", "blue_ratio", "noise", "row_jump", "width", "height", "aspect_ratio", "bytes_per_pixel",
)  # fmt: skip

_ONE_SIDED = {"clipped_low", "clipped_high", "row_jump"}
TWO_SIDED = tuple(name not in _ONE_SIDED for name in NAMES)
"""Where both tails are worth an alarm; a share of clipped pixels or a row jump can only be too high."""

WORKING_PX = 160
"""Longest side after reduction is below twice this: edges of objects survive, pixel noise and codec blocks do not."""
CROP_PX = 128


def measure(pixels: NDArray[np.uint8], n_bytes: int, mode: str) -> NDArray[np.float64]:
    """(H, W, 3) uint8 RGB pixels as decoded -> (P,) float64 in the order of NAMES; finite for any size from 1 x 1.

    Args:
        n_bytes: size of the encoded image, or of the array where it came as one.
        mode: Pillow's name of the original mode; grey modes skip the colour work.
    """
    height, width = pixels.shape[:2]
    factor = max(1, max(height, width) // WORKING_PX)
    small = Image.fromarray(pixels)
    if factor > 1:
        small = small.reduce(factor)
    luma = np.asarray(small.convert("L"))
    total = luma.size
    histogram = np.bincount(luma.ravel(), minlength=256)
    cumulative = np.cumsum(histogram)
    p1, p50, p99 = np.searchsorted(cumulative, np.array([0.01, 0.5, 0.99]) * total)
    shares = histogram[histogram > 0] / total
    saturation, red, blue = _colour(small, grey=mode in {"1", "L", "LA", "I", "I;16", "F"})
    crop = _crop(pixels)
    return np.array(
        [
            p1,
            p50,
            p99,
            cumulative[2] / total,
            1.0 - cumulative[252] / total,
            luma.std(),
            _edge_energy(luma),
            -(shares * np.log2(shares)).sum(),
            saturation,
            red,
            blue,
            _noise(crop),
            _row_jump(crop),
            width,
            height,
            math.log2(width / height),
            math.log2(max(n_bytes, 1) / (width * height)),
        ],
        dtype=np.float64,
    )


def _colour(image: Image.Image, grey: bool) -> tuple[float, float, float]:
    """(saturation, red ratio, blue ratio)."""
    if grey:
        return 0.0, 0.0, 0.0
    channels = np.asarray(image)
    highest = channels.max(axis=2).astype(np.float32)
    spread = highest - channels.min(axis=2)
    red, green, blue = channels.reshape(-1, 3).mean(axis=0) + 1.0  # + 1: a black image has no cast
    return float((spread / np.maximum(highest, 1.0)).mean()), math.log2(red / green), math.log2(blue / green)


def _edge_energy(luma: NDArray[np.uint8]) -> float:
    """Mean squared difference of horizontal and of vertical neighbours; 0 where there are none."""
    values = luma.astype(np.float32)
    energies = [np.square(np.diff(values, axis=axis)).mean() for axis in (0, 1) if values.shape[axis] > 1]
    return float(sum(energies))


def _crop(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Luma of the central CROP_PX x CROP_PX native pixels (fewer where the image is smaller)."""
    top, left = (max(0, (side - CROP_PX) // 2) for side in pixels.shape[:2])
    crop = pixels[top : top + CROP_PX, left : left + CROP_PX]
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return crop.astype(np.float32) @ weights


def _noise(luma: NDArray[np.float32]) -> float:
    """Immerkaer: sqrt(pi / 2) / 6 times the mean |image * [[1 -2 1] [-2 4 -2] [1 -2 1]]|; 0 below 3 x 3."""
    if min(luma.shape) < 3:
        return 0.0
    across = luma[:, 2:] - 2 * luma[:, 1:-1] + luma[:, :-2]
    masked = across[2:] - 2 * across[1:-1] + across[:-2]
    return float(np.abs(masked).mean() * math.sqrt(math.pi / 2) / 6)


def _row_jump(luma: NDArray[np.float32]) -> float:
    """Largest |mean of a row - mean of the rows above and below|; 0 below three rows."""
    if luma.shape[0] < 3:
        return 0.0
    rows = luma.mean(axis=1)
    return float(np.abs(rows[1:-1] - (rows[2:] + rows[:-2]) / 2).max())
