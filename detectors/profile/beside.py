"""Images scored by further profiles beside the one that judges them; what both need is made once. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from detectors.images.prepare import Prepared
    from detectors.profile.calibration import Floats, Scores
    from detectors.profile.profile import Profile


def same_features(one: Profile, other: Profile) -> bool:
    """Whether both profiles get the same features from an image: the same network, prepared for alike."""
    networks = [
        (p.backbone.digest, p.backbone.spec, p.backbone.quantised.digest if p.backbone.quantised else "")
        for p in (one, other)
    ]
    return networks[0] == networks[1]


def score_for(
    profile: Profile, images: Sequence[Prepared], others: Sequence[Profile | None]
) -> tuple[Scores, Tensor | None]:
    """The scores of N >= 1 images, with their (N, D) features where another profile can use them too.

    Not on an accelerator, which takes pixels and gives signals: features would have to be brought back.
    """
    shared = any(same_features(profile, one) for one in dict.fromkeys(others) if one is not None)
    if not shared or profile.backbone.device.type != "cpu":
        return profile.score(images), None
    features = profile.features(images)
    return profile.score_features(features, images), features


def p_values_beside(
    profile: Profile, features: Tensor | None, images: Sequence[Prepared], others: Sequence[Profile | None]
) -> list[Floats | None]:
    """The (S,) p-values of each image by another profile; None where it has none.

    Args:
        features: as `score_for` gave them: taken for those of the others that have the same network.
        others: N profiles that prepare images as `profile` does.
    """
    found: list[Floats | None] = [None] * len(images)
    for other in dict.fromkeys(one for one in others if one is not None):
        rows = [i for i, one in enumerate(others) if one is other]
        some = [images[i] for i in rows]
        if features is not None and same_features(profile, other):
            scores = other.score_features(features[np.array(rows)], some)
        else:
            scores = other.score(some)
        for i, row in zip(rows, scores.p_values, strict=True):
            found[i] = row
    return found
