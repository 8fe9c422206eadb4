"""From a heat map to the few boxes that a person should look at. No torch here: the monitor calls it for its alerts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detectors.deferred import Deferred

ndimage = Deferred("scipy.ndimage")
MOST = 3
LOCAL_SHARE = 0.5
"""A region larger than this share of the image is no place in it: a box around all of it would say nothing."""
_TOUCHING = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Region:
    """A box in fractions of the image, from its upper left corner, and how unusual its hottest place is.

    x, y, width, height: in [0, 1]. unusual: in the scale of `Profile.heat_maps`.

    >>> Region(0.25, 0.5, 0.1, 0.2, 2.4).width
    0.1
    """

    x: float
    y: float
    width: float
    height: float
    unusual: float


def over_whole_image(heat: NDArray[np.float32], frame: tuple[float, float, float, float]) -> NDArray[np.float32]:
    """(h, w) of a model's input -> (h, w) over the whole image; 0 where the input shows nothing of it.

    frame: of the image in the input (`Prepared.frame`).
    """
    if frame == (0.0, 0.0, 1.0, 1.0):
        return heat
    height, width = heat.shape
    extent = tuple(edge * side for edge, side in zip(frame, (width, height, width, height), strict=True))
    given = Image.fromarray(np.ascontiguousarray(heat))
    return np.asarray(given.transform((width, height), Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR))


def hottest(heat: NDArray[np.float32], most: int = MOST, threshold: float = 1.0) -> tuple[Region, ...]:
    """Boxes of up to `most` unusual regions of one heat map, the hottest first; none where nothing is local.

    A region is what touches its hottest place and is at least half as unusual, and at least `threshold`. What lies
    around it above the threshold belongs to it and makes no box of its own.

    Args:
        heat: (h, w), as one map of `Profile.heat_maps`; at 1 a place is as unusual as hardly any normal image has one.

    >>> heat = np.zeros((8, 8), np.float32)
    >>> heat[2:4, 4] = 3.0
    >>> hottest(heat)
    (Region(x=0.5, y=0.25, width=0.125, height=0.25, unusual=3.0),)
    """
    height, width = heat.shape
    left = np.where(np.isfinite(heat), heat, 0.0)
    around, _ = ndimage.label(left >= threshold, structure=_TOUCHING)
    found: list[Region] = []
    while len(found) < most:
        place = np.unravel_index(int(np.argmax(left)), left.shape)
        peak = float(left[place])
        if peak < threshold:
            break
        parts, _ = ndimage.label(left >= max(threshold, peak / 2), structure=_TOUCHING)
        region = parts == parts[place]
        if region.sum() <= LOCAL_SHARE * region.size:
            rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
            top, bottom, start, end = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            x, y = float(start / width), float(top / height)
            found.append(Region(x, y, float((end - start) / width), float((bottom - top) / height), peak))
        left[around == around[place]] = 0.0
    return tuple(found)
