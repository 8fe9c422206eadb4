"""The JSON document of a profile: what it is, beside the tensors that it computes with."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from detectors.profile.conditions import manifest_of
from detectors.profile.files import HALF, version_of

if TYPE_CHECKING:
    from detectors.profile.profile import Profile


def version_before(profile: Profile) -> int:
    """Version of the document that a profile was loaded from; the newest of one that was fitted."""
    return int(profile.manifest.get("version", HALF))


def beginning_of(profile: Profile) -> str:
    """What decides p-values besides the tensors, and the condition, so that no two of these share counts."""
    network = profile.backbone.digest + (profile.backbone.quantised.digest if profile.backbone.quantised else "")
    if profile.backbone.spec.precision == "bfloat16" and version_before(profile) >= HALF:
        network += "/bfloat16"
    return network + profile.preparer.name + (profile.condition and f"/condition/{profile.condition}")


def document_of(profile: Profile) -> dict[str, Any]:
    """What `Profile.save` writes, and `Profile.load` reads."""
    return {
        **profile.manifest,
        "version": version_of(profile.backbone.spec.precision, profile.backbone.spec.decoding, version_before(profile)),
        "fingerprint": profile.fingerprint,
        "backbone": profile.backbone.spec.to_json(),
        "backbone_digest": profile.backbone.digest,
        "network_digest": profile.backbone.quantised.digest if profile.backbone.quantised else None,
        "signals": list(profile.signals),
        "dependence": list(profile.dependence),
        "versions": {name: version(name) for name in ("layerwatch", "torch", "timm", "numpy", "pillow")},
        "python": platform.python_version(),
        "limits": asdict(profile.preparer.limits),
        "tones": asdict(profile.preparer.tones),
        "calibration_scores": profile.quantiles(),
        **manifest_of(profile.conditions),
    }
