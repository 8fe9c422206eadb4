"""Evaluate a profile, and every other detector on the same features, with the user's own ID and OOD images.

The profile's detector is used unchanged. The others learn from the same reference features, which a profile keeps in
`reference.safetensors`; all of them then score the same images. The headline says whether one of them does better
than the profile's detector.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detectors.evaluation.metrics import measure
from detectors.methods.detector import Detector, LayerDetector
from detectors.methods.dlsr_paper import Published
from detectors.methods.registry import REGISTRY, create
from detectors.profile.profile import Profile
from detectors.profile.reference import BATCH, prepared

THUMBNAIL_PX = 64
ID = "id"
"""Name of the ID set among the sets."""

Images = Iterable[tuple[str, bytes]]


@dataclass
class ImageSet:
    """Features (N, D), names and JPEG thumbnails of one set; thumbnails only where a report was asked for."""

    features: Tensor
    names: list[str] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


@dataclass
class Evaluation:
    """default: the profile's detector. scores: detector -> set (`id` and the OOD names) -> (N,). metrics: detector ->
    OOD name -> what `measure` gives. layers: OOD name -> AUROC and others of each layer of the default."""

    default: str
    scores: dict[str, dict[str, NDArray[np.float64]]]
    metrics: dict[str, dict[str, dict[str, Any]]]
    layers: dict[str, list[dict[str, Any]]]
    sets: dict[str, ImageSet]

    @property
    def ood_names(self) -> list[str]:
        """The OOD sets in the order given."""
        return [name for name in self.sets if name != ID]

    def mean(self, detector: str, metric: str) -> float:
        """Mean of a metric over the OOD sets."""
        return float(np.mean([self.metrics[detector][name][metric] for name in self.ood_names]))

    @property
    def headline(self) -> str:
        """Which detector is best by mean AUROC, and whether that is the default."""
        best = max(self.metrics, key=lambda name: self.mean(name, "auroc"))
        mine = self.mean(self.default, "auroc")
        over = f"mean over {len(self.ood_names)} OOD {'sets' if len(self.ood_names) > 1 else 'set'}"
        if best == self.default or self.mean(best, "auroc") <= mine:
            return f"{self.default}: AUROC {mine:.3f}, FPR@95TPR {self.mean(self.default, 'fpr95'):.3f} ({over})."
        return (
            f"{best} does better than {self.default} on these images: AUROC {self.mean(best, 'auroc'):.3f} against "
            f"{mine:.3f}, {over}; consider `layerwatch fit --detector {best}`."
        )

    def document(self) -> dict[str, Any]:
        """Plain values for --json."""
        return {
            "headline": self.headline,
            "default": self.default,
            "images": {name: len(image_set.names) for name, image_set in self.sets.items()},
            "detectors": self.metrics,
            "layers": self.layers,
        }


class EvaluationError(ValueError):
    """What was asked for cannot be evaluated; the message says why."""


def evaluate(
    profile: Profile,
    id_images: Images,
    ood_images: Mapping[str, Images],
    names: Sequence[str] = (),
    thumbnails: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score ID and OOD images with the profile's detector and with those in `names` ("all" stands for every one).

    Raises:
        EvaluationError: an unknown detector, a set without usable images, or no reference to learn the others from.
    """
    default = str(profile.manifest["detector"])
    wanted = list(REGISTRY) if "all" in names else list(names)
    if unknown := set(wanted) - set(REGISTRY):
        raise EvaluationError(f"unknown detectors {sorted(unknown)}; choose from all, {', '.join(REGISTRY)}")
    sets = {}
    for name, images in {ID: id_images, **ood_images}.items():
        progress(f"features of {name}")
        sets[name] = read_set(profile, images, thumbnails)
        if not sets[name].names:
            raise EvaluationError(f"{name}: no usable images ({len(sets[name].broken)} broken)")
    others = _others(profile, [name for name in wanted if name != default], progress)
    found = {default: profile.detector, **others}
    scores = {name: {k: _score(detector, s.features) for k, s in sets.items()} for name, detector in found.items()}
    progress("bootstrap")
    metrics = {name: {k: dict(measure(of[ID], of[k])) for k in sets if k != ID} for name, of in scores.items()}
    return Evaluation(default, scores, metrics, _layers(profile.detector, sets), sets)


def read_set(profile: Profile, images: Images, thumbnails: bool) -> ImageSet:
    """Features of all usable images of one set, a batch in memory at a time."""
    kept, parts = ImageSet(torch.empty(0)), []
    usable = prepared(images, profile.preparer, kept.broken)
    while batch := list(islice(usable, BATCH)):
        parts.append(profile.features([image for _, image in batch]))
        kept.names += [name for name, _ in batch]
        if thumbnails:
            kept.thumbnails += [_thumbnail(image.seen) for _, image in batch]
    kept.features = torch.cat(parts) if parts else kept.features
    return kept


def _others(profile: Profile, names: Sequence[str], progress: Callable[[str], None]) -> dict[str, Detector]:
    """Each detector learned from the profile's reference; the published scores share one network."""
    if not names:
        return {}
    reference = profile.reference()
    if reference is None:
        raise EvaluationError("the profile has no reference.safetensors, from which the other detectors would learn")
    learned: dict[str, Detector] = {}
    for name in names:
        progress(f"learning {name}")
        detector = create(name, profile.backbone.layers)
        published = next((other for other in learned.values() if isinstance(other, Published)), None)
        if published and isinstance(detector, Published):
            detector.restore(published.state())
        else:
            detector.fit(reference)
        learned[name] = detector
    return learned


def _score(detector: Detector, features: Tensor) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = torch.cat([detector.score(part).double() for part in features.split(1024)]).numpy()  # type: ignore[no-untyped-call]
    return scores


def _layers(detector: Detector, sets: Mapping[str, ImageSet]) -> dict[str, list[dict[str, Any]]]:
    if not isinstance(detector, LayerDetector):
        return {}
    scores = {name: detector.score_and_layers(s.features)[1].double().numpy() for name, s in sets.items()}
    count = scores[ID].shape[1]
    return {
        name: [dict(measure(scores[ID][:, i], of[:, i], resamples=0)) for i in range(count)]
        for name, of in scores.items()
        if name != ID
    }


def _thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    small = Image.fromarray(pixels)
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
