"""What normal looks like: a plain library that fits, calibrates and scores images for being out of distribution.

Names are imported on first use: decoder workers need `detectors.images.prepare` without paying for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectors.images.prepare import ImageError, Limits, Prepared, Preparer
    from detectors.methods.registry import Detector, create
    from detectors.profile.fit import FitOptions, fit_profile
    from detectors.profile.profile import Profile, ProfileError, Scores, load_profile

_HOMES = {
    "Detector": "methods.registry",
    "FitOptions": "profile.fit",
    "ImageError": "images.prepare",
    "Limits": "images.prepare",
    "Prepared": "images.prepare",
    "Preparer": "images.prepare",
    "Profile": "profile.profile",
    "ProfileError": "profile.profile",
    "Scores": "profile.profile",
    "create": "methods.registry",
    "fit_profile": "profile.fit",
    "load_profile": "profile.profile",
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
