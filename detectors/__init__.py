"""What normal looks like: a plain library that fits, calibrates and scores images for being out of distribution.

Names are imported on first use: decoder workers need `detectors.images` without paying for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectors.fit import FitOptions, fit_profile
    from detectors.images import ImageError, Limits, Prepared, Preparer
    from detectors.profile import Profile, ProfileError, Scores, load_profile
    from detectors.registry import Detector, create

_HOMES = {
    "Detector": "registry",
    "FitOptions": "fit",
    "ImageError": "images",
    "Limits": "images",
    "Prepared": "images",
    "Preparer": "images",
    "Profile": "profile",
    "ProfileError": "profile",
    "Scores": "profile",
    "create": "registry",
    "fit_profile": "fit",
    "load_profile": "profile",
}

__all__ = [
    "Detector",
    "FitOptions",
    "ImageError",
    "Limits",
    "Prepared",
    "Preparer",
    "Profile",
    "ProfileError",
    "Scores",
    "create",
    "fit_profile",
    "load_profile",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detectors' has no attribute {name!r}")
    return getattr(importlib.import_module(f"detectors.{_HOMES[name]}"), name)
