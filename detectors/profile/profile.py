"""A profile: everything that turns an image into calibrated p-values, and nothing else. What `monitor` loads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, from_numpy

from detectors.engines.engine import EngineError, use_engine
from detectors.engines.int8 import Int8Engine
from detectors.images import likeness, properties
from detectors.images.decode import ImageError, Limits
from detectors.images.likeness import Learned
from detectors.images.prepare import AnyImage, Prepared, Preparer
from detectors.images.regions import over_whole_image
from detectors.images.tones import Tones
from detectors.methods.detector import Detector, LayerDetector, nested, under
from detectors.methods.registry import create
from detectors.profile.backbone import Backbone
from detectors.profile.calibration import Calibration, Floats, Scores, from_tensors, jitter, p_values_of, to_tensors
from detectors.profile.conditions import restored, tensors_of
from detectors.profile.dependence import facts_of, worth_of
from detectors.profile.document import beginning_of, document_of
from detectors.profile.examples import EXAMPLES, load_examples, save_examples
from detectors.profile.files import MANIFEST, REFERENCE, TENSORS, DeviceError, ProfileError, read_manifest, replace_file
from detectors.profile.mix import Mix, names_of
from detectors.profile.network import tensor_digest
from detectors.profile.places import PLACES, Places
from detectors.profile.pooling import averaged
from detectors.profile.scorer import Scorer
from detectors.profile.spec import BackboneSpec, EngineName
from detectors.versions.store import located

MAX_REFERENCE = 20_000
"""Reference features that a profile keeps (half precision), for `evaluate` to fit other detectors on; serving never
reads them, and the file may be deleted."""


class Profile:
    """Backbone, detector and calibration of one reference set; `fit_profile` and `load_profile` make one.

    signals: ("ood", "layer1", ..., then the property names, "seen", then those of `mix_signals`: "mix1", ...); every
    other per-signal tuple follows its order. learned: True for ood and layers. two_sided: both tails count. dependence:
    D >= 1, the variance inflation of counts by correlated frames (1.0 unless fitted on ordered frames). mix, seen: None
    in profiles of before. manifest: the JSON document that is saved. fingerprint: 16 hex digits over
    everything that decides a p-value. places: makes the heat maps; false where there are none.
    conditions: {name: the profile by the calibration of that condition}; see `under`. condition: the name of its own.
    examples: {"mix3-low-1": JPEG}, the reference at both ends of the mix, if any. scorer: pixels to signals. runs_by:
    the engine, in words.
    """

    def __init__(
        self,
        backbone: Backbone,
        preparer: Preparer,
        detector: Detector,
        facts: Mapping[str, Any],
        mix: Mix | None = None,
        seen: Learned | None = None,
    ) -> None:
        """An uncalibrated profile of a fitted detector and mix; `facts`, its name among them, go into the manifest."""
        self.backbone = backbone
        self.detector = detector
        self.preparer = preparer
        layers = len(backbone.channels) if isinstance(detector, LayerDetector) else 0
        learned = ("ood", *(f"layer{i + 1}" for i in range(layers)))
        self.seen, self.mix, self.mix_signals = seen, mix, names_of(mix)
        self.scorer = Scorer(backbone, detector, mix)
        measured = (*properties.NAMES, likeness.NAME) if seen else properties.NAMES
        self.signals: tuple[str, ...] = (*learned, *measured, *self.mix_signals)
        self.learned: tuple[bool, ...] = tuple(signal in learned for signal in self.signals)
        tails = dict(zip(properties.NAMES, properties.TWO_SIDED, strict=True))
        self.two_sided: tuple[bool, ...] = tuple(tails.get(signal, False) for signal in self.signals)
        self.dependence: tuple[float, ...] = (1.0,) * len(self.signals)
        self.calibrations: tuple[Calibration, ...] = ()
        self.manifest: dict[str, Any] = dict(facts)
        self.fingerprint, self.condition, self.runs_by = "", "", "torch"
        self.conditions: dict[str, Profile] = {}
        self.places = Places(backbone)
        self.examples: dict[str, bytes] = {}
        self._reference: Tensor | Path | None = None

    @property
    def calibration_sizes(self) -> tuple[int, ...]:
        """Independent calibration images behind each signal."""
        return tuple(calibration.size for calibration in self.calibrations)

    @property
    def constant(self) -> tuple[str, ...]:
        """Signals in which the calibration images are all alike."""
        return tuple(s for s, calibration in zip(self.signals, self.calibrations, strict=True) if calibration.constant)

    def prepare(self, image: AnyImage, key: bytes | None = None) -> Prepared:
        """Decode, measure and resize one image (thread-safe, no torch); see `Preparer`.

        Raises:
            ImageError: the image cannot be used.
        """
        return self.preparer(image, key)

    def calibrate(self, values: Floats, keys: Sequence[bytes], ordered: bool = False) -> None:
        """Calibrate every signal on ID images: their (n, S) values, by what has not learned them, and n keys.

        ordered: the images are frames in time order: the dependence of their counts is measured, and they calibrate as
        so many independent images as they are worth. The manifest says what that comes to.
        """
        jitters = jitter(keys)
        pairs = zip(values.T, self.two_sided, strict=True)
        self.calibrations = tuple(Calibration.of(column, jitters, both) for column, both in pairs)
        self.dependence = (1.0,) * len(self.signals)
        self.manifest["frames"] = {}
        if ordered:
            worth = worth_of(self.signals, self.p_values(values, keys))
            self.manifest["frames"] = facts_of(worth)
            self.dependence = tuple(round(of.inflation, 3) for of in worth.values())
            kept = zip(self.calibrations, worth.values(), strict=True)
            self.calibrations = tuple(calibration.worth(of.usable) for calibration, of in kept)
        self.fingerprint = self.own_fingerprint()

    def under(self, condition: str) -> Profile:
        """This profile by the calibration of a condition: the same scores, other p-values, a fingerprint of its own.

        Raises:
            ProfileError: it is not calibrated for such a condition.
        """
        if condition not in self.conditions:
            known = ", ".join(sorted(self.conditions)) or "none"
            raise ProfileError(
                f"profile {self.fingerprint} has no condition {condition!r} (it has {known}); add it with "
                f"`layerwatch calibrate PROFILE IMAGES --condition {condition}`"
            )
        return self.conditions[condition]

    def quantiles(self) -> dict[str, dict[str, float]]:
        """{signal: quantiles of its calibration scores}, as the manifest has them."""
        return {s: calibration.quantiles() for s, calibration in zip(self.signals, self.calibrations, strict=True)}

    def keep_reference(self, features: Tensor) -> None:
        """Keep (N, D) features that the detector learned from, thinned evenly to MAX_REFERENCE rows."""
        self._reference = features[:: math.ceil(len(features) / MAX_REFERENCE)]

    def reference(self) -> Tensor | None:
        """(N, D) float32 features that the detector learned from; None where the profile has none."""
        if isinstance(self._reference, Path):
            self._reference = load_file(self._reference)["features"] if self._reference.exists() else None
        return None if self._reference is None else self._reference.float()

    def pooled(self, features: Tensor) -> Tensor:
        """(N, D) features of this profile -> (N, sum of channels), averaged over the cells of its grid."""
        return averaged(features, self.backbone.channels, self.backbone.spec.grid)

    def features(self, images: Sequence[Prepared]) -> Tensor:
        """(N, D) float32 features of prepared images, on the CPU."""
        return self.backbone.features(np.stack([image.pixels for image in images]))

    def score(self, images: Sequence[Prepared | AnyImage] | NDArray[np.uint8]) -> Scores:
        """Score images; an image's result does not depend on the others. No images give (0, S) arrays.

        Args:
            images: prepared images, or whatever `prepare` takes, or one (N, H, W, C) array.

        Raises:
            ImageError: an image cannot be used, or a single array is not a batch.
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise ImageError("shape", f"a batch is (N, H, W, C), not {images.shape}; give one image as [image]")
        if len(images) == 0:
            return Scores(*np.zeros((2, 0, len(self.signals))))
        prepared = [image if isinstance(image, Prepared) else self.prepare(image) for image in images]
        return self._scores(self.scorer([image.pixels for image in prepared]), prepared)

    def score_features(self, features: Tensor, images: Sequence[Prepared]) -> Scores:
        """As `score`, of images whose (N, D) features are at hand; N >= 1."""
        return self._scores(self.scorer.of_features(features), images)

    def _scores(self, signals: Floats, images: Sequence[Prepared]) -> Scores:
        values = self.with_measured(signals, self.measured(images))
        return Scores(values, self.p_values(values, [image.key for image in images]))

    def measured(self, images: Sequence[Prepared]) -> Floats:
        """(N, P) properties of N >= 1 images, the last of them `seen` where the profile has it."""
        found = np.stack([image.properties for image in images])
        return self.seen.beside(found, likeness.hashes_of([image.pixels for image in images])) if self.seen else found

    def heat_maps(self, images: Sequence[Prepared]) -> NDArray[np.float32]:
        """(N, h, w) how unusual each place of N >= 1 images is; a map lies over the whole image, letterbox or crop.

        A value of 1 is reached anywhere in one normal image of twenty; see `detectors.hottest` for boxes.

        Raises:
            HeatMapError: the profile has no heat maps (`profile.places` is false), or their file cannot be read.
        """
        maps = self.places.maps(np.stack([image.pixels for image in images]))
        return np.stack([over_whole_image(heat, image.frame) for heat, image in zip(maps, images, strict=True)])

    def beyond(self, values: Floats) -> Floats:
        """(N,) how far (N, S) values lie outside of the calibration: the largest `Calibration.beyond` of a signal.

        Those of the mix do not count: no place within the reference is worse than another.
        """
        judged = len(self.signals) - len(self.mix_signals)
        columns = [c.beyond(column) for c, column in zip(self.calibrations[:judged], values.T[:judged], strict=True)]
        return np.asarray(np.max(columns, axis=0))

    def save(self, path: str | Path) -> None:
        """Write the profile as a directory of safetensors and JSON."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        # Not save_file: it makes files that only their owner may read, and the daemon often runs as another user.
        replace_file(folder / TENSORS, save({**self._tensors(), **tensors_of(self.conditions)}))
        if (reference := self.reference()) is not None:
            replace_file(folder / REFERENCE, save({"features": reference.half().contiguous()}))
        self.places.save(folder)
        if self.backbone.quantised:
            self.backbone.quantised.save(folder)
        save_examples(folder / EXAMPLES, self.examples)
        replace_file(folder / MANIFEST, (json.dumps(document_of(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", engine: EngineName | None = None) -> Profile:
        """Read a profile directory; `detectors.load_profile` is this function.

        Args:
            path: of the directory, of a store of versions (its active one), or STORE@VERSION.
            device: as torch names it; `auto` is CUDA where there is one, else the CPU.
            engine: runs the network: `auto` is the fastest that scores as torch does, None torch (OpenVINO in 8 bits).

        Raises:
            ProfileError: a file, version, detector, backbone or engine is missing or cannot be used; DeviceError where
                it is the device.

        >>> Profile.load("no-such-profile")
        Traceback (most recent call last):
        detectors.profile.files.ProfileError: no-such-profile/profile.json: No such file or directory; ...
        """
        folder = located(path)
        document = read_manifest(folder / MANIFEST)
        try:
            tensors = load_file(folder / TENSORS)
        except (OSError, SafetensorError) as error:
            raise ProfileError(f"{folder / TENSORS}: cannot be read: {error}") from error
        try:
            backbone = Backbone(BackboneSpec.from_json(document["backbone"]), device)
            if digest := document.get("network_digest"):
                backbone.quantised = Int8Engine.read(folder, digest)
            detector = create(document["detector"], backbone.layers, **document.get("detector_options", {}))
        except DeviceError:
            raise
        except ValueError as error:
            raise ProfileError(f"{folder / MANIFEST}: {error}") from error
        if backbone.digest != document["backbone_digest"]:
            raise ProfileError(
                f"{folder}: was fitted with other weights of {document['backbone']['model']} "
                f"({document['backbone_digest']}, these are {backbone.digest})"
            )
        limits = Limits(**{**document["limits"], "formats": tuple(document["limits"]["formats"])})
        tones = Tones(**document["tones"]) if document["version"] > 2 else Tones(alpha="drop")
        preparer = backbone.preparer(limits, tones)
        mix = Mix(backbone.channels).restore(found) if (found := under("mix.", tensors)) else None
        seen = Learned(tensors["seen"].numpy().view(np.uint64)) if "seen" in tensors else None
        profile = cls(backbone, preparer, detector.restore(under("detector.", tensors)), document, mix, seen)
        if list(profile.signals) != document["signals"]:
            raise ProfileError(f"{folder}: its signals {document['signals']} are not those of this program; fit again")
        profile.dependence, profile.condition = tuple(document["dependence"]), document.get("condition", "")
        profile.calibrations = from_tensors(under("calibration.", tensors), profile.two_sided)
        profile.fingerprint = profile.own_fingerprint()
        profile._reference, profile.places = folder / REFERENCE, Places(backbone, folder / PLACES)
        profile.examples = load_examples(folder / EXAMPLES)
        if profile.fingerprint != document["fingerprint"]:
            raise ProfileError(f"{folder}: its tensors are not those its manifest was written for")
        try:
            profile.conditions = restored(profile, tensors)
            profile.runs_by = use_engine(profile, engine)
        except (ProfileError, EngineError, KeyError) as error:
            raise ProfileError(f"{folder}: {error}") from error
        return profile

    def learned_values(self, features: Tensor) -> Floats:
        """(N, D) -> (N, 1 + L) OOD score and layer scores."""
        return self.scorer.of_features(features)[:, : sum(self.learned)]

    def values(self, features: Tensor, measured: Floats) -> Floats:
        """(N, D) features and what `measured` gives -> (N, S): OOD score, layer scores, properties, mix."""
        return self.with_measured(self.scorer.of_features(features), measured)

    def with_measured(self, signals: Floats, measured: Floats) -> Floats:
        """As `values`, of what `scorer` gives."""
        learned = sum(self.learned)
        return np.concatenate([signals[:, :learned], measured, signals[:, learned:]], axis=1)

    def p_values(self, values: Floats, keys: Sequence[bytes]) -> Floats:
        """(N, S) p-values of (N, S) values that a score gave, and of the N images' keys."""
        return p_values_of(self.calibrations, values, jitter(keys))

    def _tensors(self) -> dict[str, Tensor]:
        calibration = to_tensors(self.calibrations)
        mix = nested("mix.", self.mix.state() if self.mix else {})
        seen = {"seen": from_numpy(self.seen.hashes.view(np.int64))} if self.seen else {}
        return {**nested("detector.", self.detector.state()), **mix, **seen, **nested("calibration.", calibration)}

    def own_fingerprint(self) -> str:
        """As its parts are now; that of a view names its condition, so that no two conditions share counts."""
        return tensor_digest(self._tensors(), n_bytes=8, beginning=beginning_of(self))


load_profile = Profile.load
