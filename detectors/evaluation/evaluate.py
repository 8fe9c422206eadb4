"""Evaluate a profile, and every other detector on the same features, with the user's own ID and OOD images.

The profile's detector is used unchanged. The others learn from the same reference features, which a profile keeps in
`reference.safetensors` (averaged over the whole map where the profile has a grid); all of them then score the same
images. The headline says whether one of them does better than the profile's detector. By default the others are the
baselines: they learn in seconds, networks take minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.evaluation.metrics import measure
from detectors.images.prepare import Prepared
from detectors.methods.detector import Detector, FitContext, LayerDetector, TrainableDetector
from detectors.methods.dlsr_paper import Published
from detectors.methods.registry import REGISTRY, create
from detectors.profile.calibration import Scores
from detectors.profile.profile import Profile
from detectors.profile.reference import BATCH, Progress, prepared

ID = "id"
"""Name of the ID set among the sets."""
ALL, BASELINES = "all", "baselines"
"""Stand for every detector, and for every one that needs no training."""

Images = Iterable[tuple[str, bytes]]


@dataclass(frozen=True)
class Shown:
    """An image to be shown in a report, with its score by the profile's detector, and its heat map if there is one."""

    name: str
    score: float
    image: Prepared
    heat: NDArray[np.float32] | None = None


@dataclass
class ImageSet:
    """The usable images of one set, by the profile.

    features: (N, D). scores: (N, S) values and p-values of the profile's signals. broken: what could not be used, and
    why. unusual, normal: the images with the highest and with the lowest scores, the extreme ones first; empty unless
    asked for.
    """

    features: Tensor
    scores: Scores
    names: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unusual: list[Shown] = field(default_factory=list)
    normal: list[Shown] = field(default_factory=list)


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
    names: Sequence[str] = (BASELINES,),
    shown: int = 0,
    progress: Progress = lambda _step, _share: None,
) -> Evaluation:
    """Score ID and OOD images with the profile's detector and with those in `names`.

    Args:
        names: of detectors, or ALL, or BASELINES.
        shown: how many images to keep of each end of each set, for a report.

    Raises:
        EvaluationError: an unknown detector, a set without usable images, or no reference to learn the others from.
    """
    default = str(profile.manifest["detector"])
    if unknown := set(names) - {*REGISTRY, ALL, BASELINES}:
        known = ", ".join((ALL, BASELINES, *REGISTRY))
        raise EvaluationError(f"unknown detectors {sorted(unknown)}; choose from {known}")
    others = {
        name: detector
        for name, detector in _unfitted(profile, default, names)
        if ALL in names or name in names or not isinstance(detector, TrainableDetector)
    }
    sets = {}
    for name, images in {ID: id_images, **ood_images}.items():
        sets[name] = read_set(profile, images, shown, partial(progress, f"features of {name}"))
        if not sets[name].names:
            raise EvaluationError(f"{name}: no usable images ({len(sets[name].broken)} broken)")
        sets[name].unusual = _with_heat(profile, sets[name].unusual)
        sets[name].normal = _with_heat(profile, sets[name].normal)
    scores = {default: {name: s.scores.values[:, 0] for name, s in sets.items()}}
    for name, detector in _learn(profile, others, progress).items():
        scores[name] = {k: _score(detector, profile.pooled(s.features)) for k, s in sets.items()}
    metrics = {}
    for i, (name, of) in enumerate(scores.items()):
        progress(f"measuring {name}", i / len(scores))
        metrics[name] = {k: dict(measure(of[ID], of[k])) for k in sets if k != ID}
    return Evaluation(default, scores, metrics, _layers(profile, sets), sets)


def read_set(profile: Profile, images: Images, shown: int, progress: Callable[[float], None]) -> ImageSet:
    """The usable images of one set, a batch in memory at a time."""
    broken: list[str] = []
    read = ImageSet(torch.empty(0), Scores(np.empty(0), np.empty(0)), broken=broken)
    features, scores = [], []
    usable = prepared(images, profile.preparer, broken)
    while batch := list(islice(usable, BATCH)):
        batch_images = [image for _, image in batch]
        features.append(profile.features(batch_images))
        scores.append(profile.score_features(features[-1], batch_images))
        read.names += [name for name, _ in batch]
        if shown:
            new = [
                Shown(name, float(values[0]), image)
                for (name, image), values in zip(batch, scores[-1].values, strict=True)
            ]
            read.unusual = sorted(read.unusual + new, key=lambda image: -image.score)[:shown]
            read.normal = sorted(read.normal + new, key=lambda image: image.score)[:shown]
        progress(-1.0)
    if features:
        read.features = torch.cat(features)
        read.scores = Scores(
            *(np.concatenate([getattr(part, name) for part in scores]) for name in ("values", "p_values"))
        )
    return read


def _with_heat(profile: Profile, images: list[Shown]) -> list[Shown]:
    if not images or not profile.places:
        return images
    maps = profile.heat_maps([shown.image for shown in images])
    return [replace(shown, heat=heat) for shown, heat in zip(images, maps, strict=True)]


def _unfitted(profile: Profile, default: str, names: Sequence[str]) -> Iterator[tuple[str, Detector]]:
    """Every detector but the default that `names` may mean."""
    grouped = {ALL, BASELINES} & set(names)
    for name in REGISTRY:
        if name != default and (grouped or name in names):
            yield name, create(name, profile.backbone.channels)


def _learn(profile: Profile, detectors: Mapping[str, Detector], progress: Progress) -> Mapping[str, Detector]:
    """Each detector learned from the profile's reference; the published scores share one network."""
    if not detectors:
        return {}
    reference = profile.reference()
    if reference is None:
        raise EvaluationError("the profile has no reference.safetensors, from which the other detectors would learn")
    reference = profile.pooled(reference)
    published: Published | None = None
    for i, (name, detector) in enumerate(detectors.items(), start=1):
        step = partial(progress, f"learning {name} ({i} of {len(detectors)})")
        step(0.0)
        if published and isinstance(detector, Published):
            detector.restore(published.state())
        elif isinstance(detector, TrainableDetector):
            detector.train(reference, FitContext(step))
        else:
            detector.fit(reference)
        published = detector if isinstance(detector, Published) else published
    return detectors


def _score(detector: Detector, features: Tensor) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = torch.cat([detector.score(part).double() for part in features.split(1024)]).numpy()  # type: ignore[no-untyped-call]
    return scores


def _layers(profile: Profile, sets: Mapping[str, ImageSet]) -> dict[str, list[dict[str, Any]]]:
    """Metrics of each layer of the profile's detector; its signals are those after the first that are learned."""
    if not isinstance(profile.detector, LayerDetector):
        return {}
    scores = {name: s.scores.values[:, 1 : sum(profile.learned)].T for name, s in sets.items()}
    return {
        name: [dict(measure(normal, unusual, resamples=0)) for normal, unusual in zip(scores[ID], of, strict=True)]
        for name, of in scores.items()
        if name != ID
    }
