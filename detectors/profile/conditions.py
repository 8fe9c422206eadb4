"""Conditions: several kinds of normal in one profile (day and night, two recipes), each with a calibration of its own.

Backbone and detector are those of the profile. What an image's scores are compared with depends on the condition in
which it was taken: for p-values to be uniform in every condition, each needs calibration images of its own. These are
the Mondrian conformal predictors of Vovk, Gammerman and Shafer ("Algorithmic Learning in a Random World", 2005): the
guarantee holds within each condition, however often each of them occurs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from detectors.methods.detector import nested, under
from detectors.profile.calibration import from_tensors, to_tensors
from detectors.profile.files import ProfileError, check_condition

if TYPE_CHECKING:
    from detectors.profile.profile import Profile

FACTS = ("images", "images_hash", "broken", "duplicates", "calibrated_at", "ordered", "frames")
"""What the manifest says of each calibration."""


def new_view(profile: Profile, condition: str) -> Profile:
    """The profile as it judges images of a condition, still to be calibrated on such images.

    It shares backbone, detector, preparer and heat maps with the profile. Its fingerprint is its own.

    Raises:
        ProfileError: the name is not allowed.
    """
    view = copy.copy(profile)
    view.condition, view.conditions = check_condition(condition), {}
    view.manifest = {name: value for name, value in profile.manifest.items() if name != "conditions"}
    view.manifest["condition"] = condition
    return view


def tensors_of(conditions: Mapping[str, Profile]) -> dict[str, Tensor]:
    """What is saved of the calibrations, beside the tensors of the profile."""
    found: dict[str, Tensor] = {}
    for name, view in conditions.items():
        found |= nested(f"condition.{name}.", to_tensors(view.calibrations))
    return found


def manifest_of(conditions: Mapping[str, Profile]) -> dict[str, Any]:
    """The section `conditions` of the manifest; empty where there are none."""
    if not conditions:
        return {}
    return {
        "conditions": {
            name: {
                "fingerprint": view.fingerprint,
                "dependence": list(view.dependence),
                **{fact: view.manifest[fact] for fact in FACTS if fact in view.manifest},
                "calibration_scores": view.quantiles(),
            }
            for name, view in sorted(conditions.items())
        }
    }


def restored(profile: Profile, tensors: Mapping[str, Tensor]) -> dict[str, Profile]:
    """The views that a loaded profile had when it was saved.

    Raises:
        ProfileError: the tensors of one are not those that the manifest was written for.
    """
    views = {}
    for name, facts in profile.manifest.get("conditions", {}).items():
        views[name] = view = new_view(profile, name)
        view.manifest |= facts
        view.dependence = tuple(facts["dependence"])
        view.calibrations = from_tensors(under(f"condition.{name}.", tensors), view.two_sided)
        view.fingerprint = view.own_fingerprint()
        if view.fingerprint != facts["fingerprint"]:
            raise ProfileError(f"the tensors of condition {name!r} are not those its manifest was written for")
    return views
