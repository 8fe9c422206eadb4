"""A heat map laid over its image, and boxes drawn on it; readable without telling colours apart.

The colours get lighter all the way from purple to yellow, so grey print and every kind of colour vision keep their
order; boxes are white between black lines. Places that normal images have, too, keep the colours of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detectors.images.regions import Region

FIRST, LAST = 0.5, 3.0
"""Colouring begins below what hardly any normal image reaches (1) and ends where more would say nothing new."""
MOST_COVER = 0.75
GREY = 0.6
"""Share of grey in the picture below the colours."""
_COLOURS = np.array(
    [(66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], dtype=np.float32
)  # five stops of the colour map "inferno" by N. Smith and S. van der Walt, CC0


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W, 3) image with the (h, w) map of `Profile.heat_maps` over the whole of it."""
    height, width = pixels.shape[:2]
    smooth = Image.fromarray(np.ascontiguousarray(heat, dtype=np.float32)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    share = np.clip((np.asarray(smooth) - FIRST) / (LAST - FIRST), 0.0, 1.0)[:, :, None]
    place = share * (len(_COLOURS) - 1)
    lower = np.minimum(place[:, :, 0].astype(int), len(_COLOURS) - 2)
    colour = _COLOURS[lower] + (place - lower[:, :, None]) * (_COLOURS[lower + 1] - _COLOURS[lower])
    grey = pixels.mean(axis=2, keepdims=True)
    ground = pixels + GREY * (grey - pixels)
    cover = MOST_COVER * np.minimum(1.0, 3.0 * share)
    over: NDArray[np.uint8] = (ground + cover * (colour - ground) + 0.5).clip(0, 255).astype(np.uint8)
    return over


def outline(picture: Image.Image, boxes: Sequence[Region]) -> None:
    """Draw the boxes on the picture of the whole image, in place."""
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        left, top = box.x * picture.width, box.y * picture.height
        right, bottom = left + box.width * picture.width - 1, top + box.height * picture.height - 1
        for grown, colour in ((-1, "black"), (0, "white"), (1, "white"), (2, "black")):
            draw.rectangle((left - grown, top - grown, right + grown, bottom + grown), outline=colour)
