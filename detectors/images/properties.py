"""Image properties: a sensor fault changes them before any learned feature. No torch; runs where images are decoded.

Measured on the original image, from a fixed grid of native pixels: SAMPLE_PX on the longer side, evenly spread, so
that a larger sensor does not look sharper and clipped or hot pixels are not averaged away. Images below SAMPLE_PX are
taken whole. `noise` and `row_jump` need neighbouring pixels and have samples of their own. Luma is Rec. 601,
.299 R + .587 G + .114 B, rounded to whole numbers in 0 to 255.

| name | unit, range | what it is |
|---|---|---|
| luma_p1, luma_p50, luma_p99 | luma, 0 to 255 | percentiles of luma: black level, exposure, white level |
| clipped_low, clipped_high | share, 0 to 1 | pixels with luma <= 2, >= 253 |
| contrast | luma, 0 to 127.5 | standard deviation of luma (RMS contrast) |
| sharpness | luma^2, 0 to 130050 | edge energy: mean squared luma difference of neighbouring cells, down plus across |
| entropy | bits, 0 to 8 | entropy of the luma histogram |
| saturation | share, 0 to 1 | mean of (max - min) / max over the channels; exactly 0 for grey, however it is stored |
| red_ratio, blue_ratio | log2, -8 to 8 | log2 of mean red (blue) over mean green, each plus 1; exactly 0 for grey |
| noise | green, >= 0 | noise sd by the Laplacian mask of Immerkaer (1996, "Fast noise variance estimation") |
| row_jump | green, 0 to 255 | largest jump of a row's mean against the mean of the rows beside it: dead or hot rows |
| width, height | pixels, >= 1 | of the whole image, upright |
| aspect_ratio | log2 | log2(width / height) |
| bytes_per_pixel | log2 | log2 of encoded bytes per pixel (array bytes where nothing is encoded): compression |
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

NAMES = (
    "luma_p1", "luma_p50", "luma_p99", "clipped_low", "clipped_high", "contrast", "sharpness", "entropy",
    "saturation", "red_ratio", "blue_ratio", "noise", "row_jump", "width", "height", "aspect_ratio", "bytes_per_pixel",
)  # fmt: skip

_ONE_SIDED = {"clipped_low", "clipped_high", "row_jump"}
TWO_SIDED = tuple(name not in _ONE_SIDED for name in NAMES)
"""Where both tails are worth an alarm; a share of clipped pixels or a row jump can only be too high."""

SAMPLE_PX = 96
"""6,912 samples of a 4:3 image: any share of its pixels to within one per cent, at a thirtieth of the cost of all."""
CROP_PX = 96
STRIP_PX = 16

_GREY_MODES = {"1", "L", "LA", "I", "I;16", "F"}
_MOMENTS = np.arange(256, dtype=np.float64) ** np.array([[1], [2]])
_COUNTS = np.arange(SAMPLE_PX**2 + 1, dtype=np.float64)
_N_LOG_N = _COUNTS * np.log2(np.maximum(_COUNTS, 1))
_PERCENTILES = np.array([0.01, 0.5, 0.99])

_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)

Luma = NDArray[np.float32]


def measure(
    pixels: NDArray[np.uint8], n_bytes: int, mode: str, size: tuple[int, int] | None = None
) -> NDArray[np.float64]:
    """(H, W, 3) uint8 RGB pixels as decoded -> (P,) float64 in the order of NAMES; finite for any size from 1 x 1.

    Args:
        n_bytes: size of the encoded image, or of the array where it came as one.
        mode: Pillow's name of the original mode; grey modes skip the colour work.
        size: (height, width) of the whole image where less was decoded of it; None: that of `pixels`.
    """
    height, width = pixels.shape[:2]
    rows, columns = _grid(height, width)
    sampled = pixels.reshape(height, width * 3)[rows].take(columns, axis=1).reshape(len(rows), 3, -1)
    planes = np.ascontiguousarray(sampled.transpose(1, 0, 2)).reshape(3, -1)
    floats = planes.astype(np.float32)
    luma = np.rint(_LUMA_WEIGHTS @ floats)
    p1, p50, p99, low, high, contrast, entropy = _tones(luma)
    sharpness = _sharpness(luma.reshape(len(rows), -1), cell=2 if max(height, width) >= SAMPLE_PX else 1)
    saturation, red, blue = (0.0, 0.0, 0.0) if mode in _GREY_MODES else _colour(planes, floats)
    noise, row_jump = _noise(pixels), _row_jump(pixels)
    height, width = size or (height, width)
    aspect, density = math.log2(width / height), math.log2(max(n_bytes, 1) / (width * height))
    return np.array(
        [
            p1, p50, p99, low, high, contrast, sharpness, entropy,
            saturation, red, blue, noise, row_jump, width, height, aspect, density,
        ]
    )  # fmt: skip


@lru_cache(maxsize=64)
def _grid(height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to take, and entries of a row of RGB pixels: all reds, then all greens, then all blues."""
    scale = max(1.0, max(height, width) / SAMPLE_PX)
    h, w = max(1, round(height / scale)), max(1, round(width / scale))
    rows = ((np.arange(h) + 0.5) * height / h).astype(np.intp)
    columns = ((np.arange(w) + 0.5) * width / w).astype(np.intp)
    return rows, (columns * 3 + np.arange(3)[:, None]).ravel()


def _tones(luma: Luma) -> tuple[float, ...]:
    """(p1, p50, p99, clipped low, clipped high, contrast, entropy) of whole-numbered luma, all from the histogram."""
    total = luma.size
    histogram = np.bincount(luma.astype(np.intp), minlength=256)
    cumulative = np.cumsum(histogram)
    p1, p50, p99 = np.searchsorted(cumulative, _PERCENTILES * total).tolist()
    mean, square = (_MOMENTS @ histogram / total).tolist()
    entropy = math.log2(total) - float(_N_LOG_N[histogram].sum()) / total
    low, high = int(cumulative[2]) / total, int(total - cumulative[252]) / total
    return p1, p50, p99, low, high, math.sqrt(max(0.0, square - mean * mean)), max(0.0, entropy)


def _sharpness(luma: Luma, cell: int) -> float:
    """Edge energy of the grid in cells of cell x cell samples; 0 along a side with one cell.

    Cells of 2 x 2 where the grid is coarser than the image: each averages four pixels at any resolution, so that pixel
    noise weighs the same, while small images keep the only detail they have.
    """
    if cell == 2 and min(luma.shape) > 1:
        even = luma[: len(luma) // 2 * 2, : luma.shape[1] // 2 * 2]
        rows = even[::2] + even[1::2]
        luma = (rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25)
    energy = 0.0
    for difference in (luma[1:] - luma[:-1], luma[:, 1:] - luma[:, :-1]):
        if difference.size:
            energy += float(np.vdot(difference, difference)) / difference.size
    return energy


def _colour(planes: NDArray[np.uint8], floats: NDArray[np.float32]) -> tuple[float, float, float]:
    """(3, N) twice -> (saturation, red ratio, blue ratio)."""
    highest, lowest = planes.max(axis=0), planes.min(axis=0)
    share = np.divide(highest - lowest, np.maximum(highest, 1), dtype=np.float32)
    # Sums of whole numbers below 2**24 are exact in float32, so grey gives 0 exactly. + 1 a pixel: black has no cast.
    red, green, blue = (floats.sum(axis=1) + share.size).tolist()
    return float(share.sum()) / share.size, math.log2(red / green), math.log2(blue / green)


def _noise(pixels: NDArray[np.uint8]) -> float:
    """sqrt(pi / 2) / 6 times the mean |green * [[1 -2 1] [-2 4 -2] [1 -2 1]]|, centre crop; 0 below 3 x 3."""
    if min(pixels.shape[:2]) < 3:
        return 0.0
    top, left = (max(0, (side - CROP_PX) // 2) for side in pixels.shape[:2])
    green = pixels[top : top + CROP_PX, left : left + CROP_PX, 1].astype(np.int16)
    across = green[:, 1:] - green[:, :-1]
    across = across[:, 1:] - across[:, :-1]
    down = across[1:] - across[:-1]
    masked = down[1:] - down[:-1]
    return float(np.abs(masked).sum() / masked.size) * math.sqrt(math.pi / 2) / 6


def _row_jump(pixels: NDArray[np.uint8]) -> float:
    """Largest |mean of a row - mean of the rows above and below|, over STRIP_PX spread columns; 0 below three rows."""
    height, width = pixels.shape[:2]
    if height < 3:
        return 0.0
    step = max(1, width // STRIP_PX)
    strip = np.ascontiguousarray(pixels[:, step // 2 :: step, 1])
    rows = strip.sum(axis=1, dtype=np.int32)
    return float(np.abs(2 * rows[1:-1] - rows[2:] - rows[:-2]).max() / (2 * strip.shape[1]))
