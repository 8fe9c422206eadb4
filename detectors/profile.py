"""A profile: everything that turns an image into calibrated p-values, and nothing else. What `monitor` loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detectors.calibration import Calibration
from detectors.features import Backbone
from detectors.images import Prepared, Preparer
from detectors.registry import Detector


class ProfileError(ValueError):
    """A profile cannot be loaded; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Scores:
    """values: (N, S) float64, higher = more unusual for learned signals. p_values: (N, S) float64 in (0, 1]."""

    values: NDArray[np.float64]
    p_values: NDArray[np.float64]


class Profile:
    """Backbone, detector and calibration of one reference set.

    signals: ("ood", "layer1", ..., then the property names); every other per-signal tuple follows its order.
    learned: True for ood and layers. two_sided: both tails count. dependence: D >= 1, the variance inflation of counts
    by correlated frames (1.0 unless fitted on ordered frames). calibration_sizes: images behind each signal's p-value.
    """

    fingerprint: str
    signals: tuple[str, ...]
    learned: tuple[bool, ...]
    two_sided: tuple[bool, ...]
    calibration_sizes: tuple[int, ...]
    dependence: tuple[float, ...]
    preparer: Preparer
    manifest: Mapping[str, Any]
    backbone: Backbone
    detector: Detector
    calibrations: tuple[Calibration, ...]
    reference: Tensor | None
    """(R, D) features of images the detector was fitted on, so that others can be fitted on the same; may be None."""

    def prepare(self, image: bytes | NDArray[np.uint8], key: bytes | None = None) -> Prepared:
        """Decode, measure and resize one image (thread-safe, no torch).

        Raises:
            ImageError: the image cannot be used.
        """
        return self.preparer(image, key)

    def features(self, images: Sequence[Prepared]) -> Tensor:
        """(N, D) float32 pooled backbone features, on the CPU."""
        raise NotImplementedError

    def score(self, images: Sequence[Prepared]) -> Scores:
        """Score prepared images; an image's result does not depend on the others. No images give (0, S) arrays."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write the profile as a directory of safetensors and JSON."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Profile:
        """Read a profile directory.

        Raises:
            ProfileError: missing or truncated file, unknown version, or another backbone than the profile names.
        """
        raise NotImplementedError


def load_profile(path: str | Path, device: str = "auto") -> Profile:
    """`Profile.load`."""
    return Profile.load(path, device)
