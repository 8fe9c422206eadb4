"""Small pictures of the worst images, made from the pixels the model saw: never the sender's own bytes."""

from __future__ import annotations

import io

from PIL import Image

from detectors.images.prepare import Prepared

QUALITY = 70
"""Of the JPEG: about 3 KB at 96 px, and a person still sees what is wrong."""


def thumbnail(prepared: Prepared, longest_px: int) -> bytes:
    """A JPEG whose longest side is at most `longest_px`, in the proportions of the original."""
    scale = longest_px / max(prepared.width, prepared.height)
    size = max(1, round(prepared.width * scale)), max(1, round(prepared.height * scale))
    buffer = io.BytesIO()
    Image.fromarray(prepared.pixels).resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
