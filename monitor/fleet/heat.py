"""Heat maps as they are shown: a transparent picture to lay over an image. Pure."""

from __future__ import annotations

import io
from base64 import b64encode

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monitor.core.heat import HOTTEST, Heat

STOPS = (
    (0.5, (126, 3, 168), 0.0),
    (1.0, (204, 71, 120), 0.3),
    (1.7, (248, 149, 64), 0.4),
    (2.5, (240, 249, 33), 0.5),
)
"""(value of the map, colour, how opaque): from what every normal image has to the hottest. At most half: a smeared lens
is hot everywhere, and the picture below has to be seen. The colours of matplotlib's plasma: their lightness grows with
the value, so that people who do not see red from green read it too."""


def _palette() -> NDArray[np.uint8]:
    """(256, 4) uint8 RGBA of each level."""
    values = np.arange(256) * HOTTEST / 255
    at = [stop for stop, _, _ in STOPS]
    channels = [np.interp(values, at, [colour[i] for _, colour, _ in STOPS]) for i in range(3)]
    opacity = np.interp(values, at, [255 * opaque for _, _, opaque in STOPS])
    return np.stack([*channels, opacity], axis=1).round().astype(np.uint8)


PALETTE = _palette()


def overlay(heat: Heat) -> str:
    """A PNG as a data: address, one pixel for each place: browsers smooth it when they lay it over the image."""
    buffer = io.BytesIO()
    Image.fromarray(PALETTE[heat.levels], "RGBA").save(buffer, "PNG")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
