"""A profile: everything that turns an image into calibrated p-values, and nothing else. What `monitor` loads."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from detectors.images import properties
from detectors.images.prepare import Limits, Prepared, Preparer
from detectors.methods.registry import Detector, JointDetector, LayerDetector, create
from detectors.profile.backbone import Backbone, BackboneError, BackboneSpec
from detectors.profile.calibration import Calibration, jitter

VERSION = 2
MANIFEST, TENSORS, REFERENCE = "profile.json", "profile.safetensors", "reference.safetensors"
MAX_REFERENCE = 20_000
"""Reference features that a profile keeps (half precision) for `evaluate` to teach the other detectors; serving never
reads them, and the file may be deleted."""


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

    def __init__(
        self,
        backbone: Backbone,
        name: str,
        detector: Detector,
        facts: Mapping[str, Any],
        limits: Limits | None = None,
    ) -> None:
        """An uncalibrated profile of a fitted detector; `facts` go into the manifest."""
        self.backbone = backbone
        self.detector = detector
        self.preparer = Preparer(backbone.input_px, limits or Limits(), backbone.filter)
        layers = len(backbone.layers) if isinstance(detector, LayerDetector) else 0
        learned = ("ood", *(f"layer{i + 1}" for i in range(layers)))
        self.signals: tuple[str, ...] = (*learned, *properties.NAMES)
        self.learned: tuple[bool, ...] = tuple(signal in learned for signal in self.signals)
        self.two_sided: tuple[bool, ...] = (*(False for _ in learned), *properties.TWO_SIDED)
        self.dependence: tuple[float, ...] = (1.0,) * len(self.signals)
        self.calibrations: tuple[Calibration, ...] = ()
        self.manifest: dict[str, Any] = {"detector": name, **facts}
        self.fingerprint = ""
        self._reference: Tensor | Path | None = None

    @property
    def calibration_sizes(self) -> tuple[int, ...]:
        """Calibration images behind each signal."""
        return tuple(calibration.size for calibration in self.calibrations)

    def prepare(self, image: bytes | NDArray[np.uint8], key: bytes | None = None) -> Prepared:
        """Decode, measure and resize one image (thread-safe, no torch).

        Raises:
            ImageError: the image cannot be used.
        """
        return self.preparer(image, key)

    def calibrate(self, features: Tensor, measured: NDArray[np.float64], keys: Sequence[bytes]) -> Self:
        """Calibrate every signal on held-out ID images: (n, D) features, (n, P) properties, n keys."""
        values = self._values(features, measured)
        jitters = jitter(keys)
        self.calibrations = tuple(
            Calibration.of(values[:, i], jitters, two_sided) for i, two_sided in enumerate(self.two_sided)
        )
        self.fingerprint = self._fingerprint()
        return self

    def keep_reference(self, features: Tensor) -> None:
        """Keep (N, D) features the detector learned from, thinned evenly to MAX_REFERENCE rows."""
        self._reference = features[:: -(-len(features) // MAX_REFERENCE)]

    def reference(self) -> Tensor | None:
        """(N, D) float32 features the detector learned from; None where the profile has none."""
        if isinstance(self._reference, Path):
            self._reference = load_file(self._reference)["features"] if self._reference.exists() else None
        return None if self._reference is None else self._reference.float()

    def features(self, images: Sequence[Prepared]) -> Tensor:
        """(N, D) float32 features of prepared images, on the CPU."""
        return self._features(np.stack([image.pixels for image in images]))

    def score(self, images: Sequence[Prepared]) -> Scores:
        """Score prepared images; an image's result does not depend on the others. No images give (0, S) arrays."""
        if not images:
            empty = np.zeros((0, len(self.signals)))
            return Scores(empty, empty.copy())
        features = self.features(images)
        values = self._values(features, np.stack([image.properties for image in images]))
        return Scores(values, self._p_values(values, [image.key for image in images]))

    def p_values(self, features: Tensor, measured: NDArray[np.float64], keys: Sequence[bytes]) -> NDArray[np.float64]:
        """(N, S) p-values of (N, D) features, (N, P) properties and N keys."""
        return self._p_values(self._values(features, measured), keys)

    def save(self, path: str | Path) -> None:
        """Write the profile as a directory of safetensors and JSON."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        # Not save_file: it makes files that only their owner may read, and the daemon often runs as another user.
        (folder / TENSORS).write_bytes(save(self._tensors()))
        if (reference := self.reference()) is not None:
            (folder / REFERENCE).write_bytes(save({"features": reference.half().contiguous()}))
        document = {**self.manifest, **self._own_facts()}
        (folder / MANIFEST).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Profile:
        """Read a profile directory.

        Raises:
            ProfileError: missing or truncated file, unknown version, or another backbone than the profile names.
        """
        folder = Path(path)
        document = _read_manifest(folder / MANIFEST)
        try:
            tensors = load_file(folder / TENSORS)
        except (OSError, SafetensorError) as error:
            raise ProfileError(f"{folder / TENSORS}: cannot be read: {error}") from error
        try:
            backbone = Backbone(BackboneSpec.from_json(document["backbone"]), device)
        except BackboneError as error:
            raise ProfileError(f"{folder / MANIFEST}: {error}") from error
        if backbone.digest != document["backbone_digest"]:
            raise ProfileError(
                f"{folder}: was fitted with other weights of {document['backbone']['model']} "
                f"({document['backbone_digest']}, these are {backbone.digest})"
            )
        name = document["detector"]
        facts = {k: v for k, v in document.items() if k != "detector"}
        options = document.get("detector_options", {})
        detector = create(name, backbone.layers, **options).restore(_under("detector.", tensors))
        profile = cls(backbone, name, detector, facts, _limits(document))
        profile._take(document, tensors)
        profile._reference = folder / REFERENCE
        if profile.fingerprint != document["fingerprint"]:
            raise ProfileError(f"{folder}: its tensors are not those its manifest was written for")
        return profile

    def _take(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        if list(self.signals) != document["signals"]:
            raise ProfileError(f"profile signals {document['signals']} are not those of this program; fit it again")
        self.dependence = tuple(document["dependence"])
        jitters, values = tensors["calibration.jitters"].numpy(), tensors["calibration.values"].numpy()
        self.calibrations = tuple(
            Calibration(values[i], jitters[i].view(np.uint64), side) for i, side in enumerate(self.two_sided)
        )
        self.fingerprint = self._fingerprint()

    def _features(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(N, S, S, 3) -> (N, D) on the CPU; halves the batch when the device is out of memory."""
        try:
            return self.backbone(pixels).cpu()
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise
            half = len(pixels) // 2
            return torch.cat([self._features(pixels[:half]), self._features(pixels[half:])])

    def _values(self, features: Tensor, measured: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, S): OOD score, layer scores, properties."""
        if isinstance(self.detector, JointDetector):  # both from one pass through the network
            columns = [part.double() for part in self.detector.score_and_layers(features)]
        elif isinstance(self.detector, LayerDetector):
            columns = [self.detector.score(features).double(), self.detector.layer_scores(features).double()]
        else:
            columns = [self.detector.score(features).double()]
        learned = torch.cat([part.view(len(part), -1) for part in columns], dim=1)
        return np.concatenate([learned.numpy(), measured], axis=1)

    def _p_values(self, values: NDArray[np.float64], keys: Sequence[bytes]) -> NDArray[np.float64]:
        jitters = jitter(keys)
        columns = [c.p_values(values[:, i], jitters) for i, c in enumerate(self.calibrations)]
        return np.stack(columns, axis=1)

    def _tensors(self) -> dict[str, Tensor]:
        values = np.stack([c.values for c in self.calibrations])
        # safetensors has unsigned 64-bit only lately; the bits travel as signed ones
        jitters = np.stack([c.jitters for c in self.calibrations]).view(np.int64)
        detector = {f"detector.{name}": tensor for name, tensor in self.detector.state().items()}
        return {
            **detector,
            "calibration.values": torch.from_numpy(values),
            "calibration.jitters": torch.from_numpy(jitters),
        }

    def _own_facts(self) -> dict[str, Any]:
        """What the manifest says of this object; it overrides what a loaded manifest said."""
        return {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "backbone": self.backbone.spec.to_json(),
            "backbone_digest": self.backbone.digest,
            "signals": list(self.signals),
            "dependence": list(self.dependence),
            "versions": {name: version(name) for name in ("layerwatch", "torch", "timm", "numpy", "pillow")},
            "python": platform.python_version(),
            "limits": asdict(self.preparer.limits),
            "calibration_scores": self._calibration_summary(),
        }

    def _calibration_summary(self) -> dict[str, dict[str, float]]:
        """Per signal the 1st, 50th, 95th and 99th percentile of its calibration values."""
        levels = {"p1": 0.01, "p50": 0.5, "p95": 0.95, "p99": 0.99}
        pairs = zip(self.signals, self.calibrations, strict=True)
        return {
            signal: {name: round(float(np.quantile(c.values, q)), 6) for name, q in levels.items()}
            for signal, c in pairs
        }

    def _fingerprint(self) -> str:
        """16 hex digits over everything that decides a p-value."""
        digest = hashlib.blake2b(self.backbone.digest.encode(), digest_size=8)
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _limits(document: Mapping[str, Any]) -> Limits:
    facts = dict(document["limits"])
    return Limits(**{**facts, "formats": tuple(facts["formats"])})


def load_profile(path: str | Path, device: str = "auto") -> Profile:
    """`Profile.load`."""
    return Profile.load(path, device)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}; make a profile with `layerwatch fit`") from error
    except ValueError as error:
        raise ProfileError(f"{path}: not valid JSON: {error}") from error
    if document.get("version") != VERSION:
        raise ProfileError(f"{path}: version {document.get('version')!r}; this program reads version {VERSION}")
    return document


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
