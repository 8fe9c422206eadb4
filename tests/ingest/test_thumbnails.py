"""Thumbnails show what the model saw of an image, as it looked."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from detectors.images.prepare import RESIZES, Preparer, Resize
from monitor.ingest.batch import thumbnail


@pytest.mark.parametrize("resize", RESIZES)
def test_a_thumbnail_has_the_proportions_of_the_image_and_no_bars(resize: Resize) -> None:
    image = np.full((100, 200, 3), 250, np.uint8)
    prepared = Preparer(64, resize=resize, fill=(0, 0, 0))(image)
    shown = np.asarray(Image.open(io.BytesIO(thumbnail(prepared, longest_px=48))))
    assert shown.shape == (24, 48, 3)
    assert shown[:, 16:32].min() > 240  # the middle square, of which a crop shows most
    assert (shown[:, :8].max() < 140) == (resize == "crop")
