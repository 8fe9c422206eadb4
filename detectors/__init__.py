"""What normal looks like: a plain library that fits, calibrates and scores images for being out of distribution.

    import detectors

    profile = detectors.fit_profile(images)              # (name, image) pairs of normal images
    profile.save("profile")
    profile = detectors.load_profile("profile")
    profile.score([new_image]).p_values                  # one column per entry of profile.signals

Names are imported on first use: decoder workers need `detectors.images.prepare` without the seconds that torch takes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectors.evaluation.shift import ShiftTest, shift_test
    from detectors.images.decode import ImageError, Limits
    from detectors.images.prepare import Prepared, Preparer
    from detectors.images.regions import Region, hottest
    from detectors.methods.detector import Detector
    from detectors.methods.registry import create, register
    from detectors.profile.calibration import Scores
    from detectors.profile.files import DeviceError, ProfileError
    from detectors.profile.fit import FitOptions, TooFewImagesError, fit_profile, recalibrate
    from detectors.profile.places import HeatMapError
    from detectors.profile.profile import Profile, load_profile
    from detectors.profile.spec import BackboneSpec

_HOMES = {
    "evaluation.shift": ("ShiftTest", "shift_test"),
    "images.decode": ("ImageError", "Limits"),
    "images.prepare": ("Prepared", "Preparer"),
    "images.regions": ("Region", "hottest"),
    "methods.detector": ("Detector",),
    "methods.registry": ("create", "register"),
    "profile.fit": ("FitOptions", "TooFewImagesError", "fit_profile", "recalibrate"),
    "profile.places": ("HeatMapError",),
    "profile.files": ("DeviceError", "ProfileError"),
    "profile.calibration": ("Scores",),
    "profile.profile": ("Profile", "load_profile"),
    "profile.spec": ("BackboneSpec",),
}
__all__ = [
    "BackboneSpec", "Detector", "DeviceError", "FitOptions", "HeatMapError", "ImageError", "Limits", "Prepared",
    "Preparer", "Profile", "ProfileError", "Region", "Scores", "ShiftTest", "TooFewImagesError", "create",
    "fit_profile", "hottest", "load_profile", "recalibrate", "register", "shift_test",
]  # fmt: skip


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"detectors.{home}"), name)
    raise AttributeError(f"module 'detectors' has no attribute {name!r}")
