"""From the values of an image to 8-bit RGB: bit depth and transparency. Pure.

Cameras with 10, 12 or 14 bits write them into 16-bit files as they are. Such a file's high byte holds 4 to 64 levels,
so a profile learns which depth its reference uses, and every image is scaled by that: the white level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that sensors have; a dim reference of a 12-bit camera must not make 11 bits the range."""
BACKGROUND = 128
"""What transparent pixels lie on: neither dark nor bright, which would look like clipping."""
ABOVE_WHITE = "above_white"
"""Note on an image: it has values above the white level, which count as white."""

Values = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Tones:
    """How values become 8 bits.

    white_level: the largest value of 16-bit images, 2**depth - 1; None where the reference had no such images: then the
    high byte counts. alpha: composite puts transparent pixels on a constant, so that what nobody sees is not scored;
    drop ignores transparency, as profiles of earlier versions did.

    >>> Tones.of(1800)
    Tones(white_level=4095, alpha='composite')
    """

    white_level: int | None = None
    alpha: Literal["composite", "drop"] = "composite"

    @property
    def name(self) -> str:
        """For the fingerprint; empty for what profiles of earlier versions did."""
        return "" if self == Tones(None, "drop") else f"{self.white_level}/{self.alpha}"

    @classmethod
    def of(cls, largest: int) -> Tones:
        """Those of a reference whose 16-bit images have no value above `largest`."""
        return cls(next(2**bits - 1 for bits in DEPTHS if largest < 2**bits))

    def rgb(self, values: Values) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """(H, W, 1 | 3 | 4) uint8 or uint16 -> (H, W, 3) uint8 pixels, and notes (none, or ABOVE_WHITE).

        Values above the white level count as white and are noted, not refused: a scene that got brighter is drift, and
        must reach the rules.
        """
        notes: tuple[str, ...] = ()
        colours, alpha = (values[:, :, :3], values[:, :, 3:]) if values.shape[2] == 4 else (values, None)
        if colours.dtype == np.uint16:
            white = 65_535 if self.white_level is None else self.white_level
            if white < 65_535 and colours.max() > white:
                colours, notes = np.minimum(colours, white), (ABOVE_WHITE,)
            colours = (colours >> (white.bit_length() - 8)).astype(np.uint8)
            alpha = None if alpha is None else (alpha >> 8).astype(np.uint8)
        if alpha is not None and self.alpha == "composite" and alpha.min() < 255:
            opaque = alpha.astype(np.uint32)
            colours = ((colours * opaque + BACKGROUND * (255 - opaque) + 127) // 255).astype(np.uint8)
        return (np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else np.ascontiguousarray(colours)), notes
