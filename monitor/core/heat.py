"""Where an image is unusual, small enough to be kept beside its picture. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.images.regions import Region

HOTTEST = 4.0
"""In the unit of `Profile.heat_maps`: what is hotter is kept as this."""


@dataclass(frozen=True, slots=True)
class Heat:
    """A heat map in 8 bits, and boxes around its hottest regions.

    levels: (h, w) uint8 over the whole image; 255 is HOTTEST, 64 what hardly any normal image reaches anywhere.
    """

    levels: NDArray[np.uint8]
    regions: tuple[Region, ...] = ()

    @classmethod
    def of(cls, heat: NDArray[np.float32], regions: tuple[Region, ...]) -> Heat:
        """From one (h, w) map of a profile."""
        shares = np.nan_to_num(heat, nan=0.0, posinf=HOTTEST) / HOTTEST
        return cls((255 * shares.clip(0.0, 1.0) + 0.5).astype(np.uint8), regions)
