"""Bucket vectors of images with given p-values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import Layout, fill_groups
from monitor.core.types import Vector


def fill(layout: Layout, p_values: NDArray[np.floating[Any]]) -> Vector:
    """The (V,) vector of one stream's images; p_values is (N, S), signals in the order of the layout."""
    vector: Vector = fill_groups(layout, p_values, np.zeros(len(p_values), dtype=np.intp), 1)[0]
    return vector
