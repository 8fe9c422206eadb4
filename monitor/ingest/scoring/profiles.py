"""Which profile judges which stream. Only this module loads detectors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detectors.images.prepare import Limits, Prepared, Preparer
from monitor.core.buckets import Layout
from monitor.ingest.settings import DecodingSettings, ScoringSettings
from monitor.store import Store
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

if TYPE_CHECKING:  # torch takes seconds to load, and only a process that scores needs it
    from detectors import Profile

MEMORY_WORDS = ("out of memory", "not enough memory", "allocate memory")


@dataclass(frozen=True)
class Preparers:
    """The part of the profiles that decoding needs; picklable, loads no torch."""

    default: Preparer
    overrides: tuple[tuple[str, Preparer], ...] = ()

    def of(self, stream: str) -> Preparer:
        """How images of that stream are prepared."""
        return next((preparer for glob, preparer in self.overrides if fnmatchcase(stream, glob)), self.default)


class Profiles:
    """The default profile and those of the streams that have their own; the first matching override wins."""

    def __init__(self, default: Profile, overrides: Sequence[tuple[str, Profile]], limits: Limits) -> None:
        self._default, self._overrides = default, tuple(overrides)
        self._of: dict[str, Profile] = {}
        self._limits = limits
        self.layouts = {profile.fingerprint: layout_of(profile) for profile in self.all()}
        """Fingerprint -> what the entries of its vectors mean."""

    def all(self) -> list[Profile]:
        """Every profile once."""
        found = {profile.fingerprint: profile for profile in (self._default, *(p for _, p in self._overrides))}
        return list(found.values())

    def of(self, stream: str) -> Profile:
        """The profile that judges a stream."""
        if stream not in self._of:
            if len(self._of) > 100_000:  # senders choose the names: the cache must not grow for ever
                self._of.clear()
            self._of[stream] = next((p for glob, p in self._overrides if fnmatchcase(stream, glob)), self._default)
        return self._of[stream]

    def device_memory(self) -> dict[tuple[str, str], int]:
        """{(device, "used" or "total"): bytes} of the accelerators in use; empty on a CPU."""
        found = [(str(profile.backbone.device), profile.device_memory()) for profile in self.all()]
        return {(device, kind): n for device, memory in found for kind, n in memory.items()}

    def preparers(self) -> Preparers:
        """How images are prepared for each stream, under the configured limits."""

        def preparer(profile: Profile) -> Preparer:
            return Preparer(profile.preparer.input_px, self._limits, profile.preparer.filter)

        return Preparers(preparer(self._default), tuple((glob, preparer(p)) for glob, p in self._overrides))

    def p_values(
        self, images: Sequence[tuple[str, Prepared]], batch_images: int
    ) -> list[tuple[str, NDArray[np.float64]]]:
        """(fingerprint, (S,) p-values) of each (stream, image), scored in batches of one profile each."""
        found: list[tuple[str, NDArray[np.float64]]] = [("", np.empty(0))] * len(images)
        groups: dict[str, list[int]] = {}
        for i, (stream, _) in enumerate(images):
            groups.setdefault(self.of(stream).fingerprint, []).append(i)
        for fingerprint, members in groups.items():
            profile = self.of(images[members[0]][0])
            for start in range(0, len(members), batch_images):
                batch = members[start : start + batch_images]
                rows = _score_halving(profile, [images[i][1] for i in batch])
                for i, row in zip(batch, rows, strict=True):
                    found[i] = (fingerprint, row)
        return found


def _score_halving(profile: Profile, images: Sequence[Prepared]) -> NDArray[np.float64]:
    """(N, S) p-values; a batch that does not fit into memory is scored in halves.

    On a GPU that shows as torch's own error, on the CPU as a RuntimeError of its allocator.
    """
    try:
        failpoint("score")
        scores = profile.score(images)
    except (MemoryError, RuntimeError) as error:
        exhausted = isinstance(error, MemoryError) or any(word in str(error) for word in MEMORY_WORDS)
        if not exhausted or len(images) < 2:
            raise
        metrics.HALVED.inc()
        half = len(images) // 2
        return np.concatenate([_score_halving(profile, images[:half]), _score_halving(profile, images[half:])])
    for i in np.flatnonzero(profile.learned):
        histogram = metrics.SCORES.labels(profile.fingerprint, profile.signals[i])
        for value in scores.values[:, i].tolist():
            histogram.observe(value)
    return scores.p_values


def layout_of(profile: Profile) -> Layout:
    """What the entries of a profile's bucket vectors mean."""
    return Layout(
        signals=profile.signals,
        calibration_sizes=profile.calibration_sizes,
        two_sided=profile.two_sided,
        learned=profile.learned,
        dependence=profile.dependence,
    )


def publish_profiles(store: Store, profiles: Profiles) -> None:
    """Write what the counts mean, and which profiles made them, for everyone who reads them.

    Raises:
        StoreError: Redis does not answer.
    """
    store.catalog.put_layouts(profiles.layouts)
    store.catalog.put_profiles({profile.fingerprint: json.dumps(profile.manifest) for profile in profiles.all()})


def load_profiles(scoring: ScoringSettings, decoding: DecodingSettings) -> Profiles:
    """Load every profile that the configuration names.

    Raises:
        detectors.ProfileError: one cannot be loaded; the message names the file.
    """
    from detectors import load_profile  # noqa: PLC0415 - loads torch, see above

    loaded: dict[Path, Profile] = {}

    def load(path: Path) -> Profile:
        if path not in loaded:
            loaded[path] = load_profile(path, scoring.device)
        return loaded[path]

    limits = Limits(decoding.max_record_bytes, decoding.max_pixels, tuple(decoding.formats))
    overrides = [(override.streams, load(override.path)) for override in scoring.profiles]
    return Profiles(load(scoring.profile), overrides, limits)
