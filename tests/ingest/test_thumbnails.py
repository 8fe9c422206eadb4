"""Thumbnails show what the model saw of an image, as it looked."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from detectors.images.prepare import Preparer, Resize
from monitor.ingest.batch import thumbnail


@pytest.mark.parametrize(
    ("resize", "size"),
    [("stretch", (48, 24)), ("letterbox", (48, 24)), ("crop", (48, 48))],
    ids=str,
)
def test_a_thumbnail_has_the_proportions_of_what_was_seen_and_no_bars(resize: Resize, size: tuple[int, int]) -> None:
    image = np.full((100, 200, 3), 250, np.uint8)
    prepared = Preparer(64, resize=resize, fill=(0, 0, 0))(image)
    shown = Image.open(io.BytesIO(thumbnail(prepared, longest_px=48)))
    assert shown.size == size
    assert np.asarray(shown).min() > 240
