"""The profiles and the streams they judge. Only this module loads detectors."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from detectors.images.decode import Limits
from detectors.images.prepare import Prepared
from detectors.images.regions import hottest
from detectors.profile.outline import Outline, read_outline
from detectors.versions.store import Pointer
from monitor.core.buckets import Layout, counted_under
from monitor.core.heat import Heat
from monitor.core.shadow import PREFIX, shadow_of
from monitor.core.types import Record
from monitor.ingest.by_stream import ByStream, Preparers
from monitor.ingest.conditions import ConditionRule
from monitor.ingest.scoring.halving import Beside, score_halving
from monitor.ingest.scoring.views import ConditionsError, misfits, unlike, views_in_use
from monitor.ingest.settings import DecodingSettings, ScoringSettings
from monitor.telemetry import metrics

if TYPE_CHECKING:  # torch takes seconds to load, and only a process that scores needs it
    from detectors import Profile
    from monitor.store import Store

log = structlog.get_logger(__name__)

UNCONDITIONAL: ByStream[ConditionRule | None] = ByStream(None)
UNSHADOWED: ByStream[Profile | None] = ByStream(None)
CACHED_STREAMS = 100_000
"""Bounds the cache: senders choose the names of streams."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a profile says of one image."""

    fingerprint: str
    """That the counts of the image carry."""
    p_values: NDArray[np.float64]
    """(S,)"""
    beyond: float
    """How far its scores lie outside of the calibration."""
    shadow: Beside = None


class Profiles:
    """The profiles of all streams; `limits` bound the images that decoding accepts.

    Args:
        conditions: how streams name the condition of an image; None for those that have none.
        shadow: the profiles in shadow, by stream.

    Raises:
        ConditionsError: a profile is not calibrated for one of them, or one in shadow prepares images otherwise.
    """

    def __init__(
        self,
        by_stream: ByStream[Profile],
        limits: Limits,
        conditions: ByStream[ConditionRule | None] = UNCONDITIONAL,
        shadow: ByStream[Profile | None] = UNSHADOWED,
    ) -> None:
        if wrong := list(unlike(by_stream, shadow)):
            raise ConditionsError(wrong)
        self._by_stream, self._limits, self._conditions = by_stream, limits, conditions
        self._shadow_of: Callable[[str], Profile | None] = lru_cache(CACHED_STREAMS)(shadow.of)
        self.of: Callable[[str], Profile] = lru_cache(CACHED_STREAMS)(by_stream.of)
        """The profile that judges a stream; images of a condition are judged by a view of it."""
        namers = {id(rule): rule.namer() for rule in conditions.all() if rule}
        self._namer_of = lru_cache(CACHED_STREAMS)(lambda stream: namers.get(id(conditions.of(stream))))
        self._views = views_in_use(by_stream, conditions)
        self.oddities = tuple(misfits(by_stream, conditions))
        """What runs, and is hardly meant; each line begins with its key."""
        self.layouts = {counted_under(profile.fingerprint): layout_of(profile) for profile in self.all()}
        """Fingerprint -> layout of the bucket vectors."""
        shadows = {shadow_of(counted_under(p.fingerprint)): p for p in shadow.all() if p is not None}
        shadows |= {shadow_of(counted_under(v.fingerprint)): v for p in shadows.values() for v in p.conditions.values()}
        self.shadow_layouts = {name: layout_of(profile) for name, profile in shadows.items()}
        """As `layouts`, of the profiles in shadow and their views."""
        self.pins: Mapping[str, str] = {}
        """Address in the configuration -> address of the profile that was loaded; of a store it names the version."""

    def fingerprint_of(self, stream: str) -> str:
        """The fingerprint that the counts of a stream carry where no image names a condition."""
        return counted_under(self.of(stream).fingerprint)

    def conditions_of(self, stream: str) -> Collection[str]:
        """The conditions that images of the stream may have."""
        rule = self._conditions.of(stream)
        return (rule.names or self.of(stream).conditions.keys()) if rule else ()

    def view_of(self, stream: str, record: Record, event_time_ms: int, image: Prepared) -> Profile:
        """The profile of the stream by the calibration of the image's condition.

        An image without a usable condition is judged by the profile's own calibration, and counted in the metric.
        """
        profile, namer = self.of(stream), self._namer_of(stream)
        if namer is None:
            return profile
        condition = namer(record, event_time_ms, image)
        if (view := profile.conditions.get(condition or "")) is None:
            metrics.UNCONDITIONED.labels("missing" if condition is None else "unknown").inc()
        return view or profile

    @property
    def fingerprints(self) -> list[str]:
        """Of the profiles, as their counts carry them; without those of their views."""
        return sorted({counted_under(profile.fingerprint) for profile in self._by_stream.all()})

    @property
    def loaded(self) -> set[str]:
        """Fingerprints of all profiles, with their views by condition, and of those in shadow."""
        return {*self.layouts, *(name.removeprefix(PREFIX) for name in self.shadow_layouts)}

    def all(self) -> list[Profile]:
        """Every profile once, and their views by the conditions in use."""
        found = [*self._by_stream.all(), *self._views]
        return list({profile.fingerprint: profile for profile in found}.values())

    @property
    def accelerated(self) -> bool:
        """Whether another device than the CPU scores."""
        return any(profile.backbone.device.type != "cpu" for profile in self.all())

    def device_memory(self) -> dict[tuple[str, str], int]:
        """{(device, "used" or "total"): bytes} of the accelerators in use; empty on a CPU."""
        found = [(str(profile.backbone.device), profile.backbone.device_memory()) for profile in self.all()]
        return {(device, kind): n for device, memory in found for kind, n in memory.items()}

    def preparers(self) -> Preparers:
        """How images are prepared for each stream, under the configured limits."""

        profiles, limits = self._by_stream, self._limits
        overrides = tuple((glob, replace(profile.preparer, limits=limits)) for glob, profile in profiles.overrides)
        return Preparers(replace(profiles.default.preparer, limits=limits), overrides)

    def probe(self, stream: str) -> None:
        """Score a plain image with the profile of a stream; raises whatever scoring raises."""
        _probe(self.of(stream))

    def probe_all(self) -> None:
        """Likewise with every profile: the first image takes longer than those after it."""
        for profile in self._by_stream.all():
            _probe(profile)

    def p_values(
        self, images: Sequence[tuple[str, Prepared]], batch_images: int, views: Sequence[Profile] = ()
    ) -> list[Judgement]:
        """What the profile of its stream says of each (stream, image), scored in batches of one profile each.

        Args:
            views: one per image, as `view_of` gives it; none: the profiles themselves.
        """
        groups: dict[Profile, list[int]] = defaultdict(list)
        for i, (stream, _) in enumerate(images):
            groups[self.of(stream)].append(i)
        found: dict[int, Judgement] = {}
        for profile, members in groups.items():
            for start in range(0, len(members), batch_images):
                batch = members[start : start + batch_images]
                judges: dict[Profile, list[int]] = defaultdict(list)
                for row, i in enumerate(batch):
                    judges[views[i] if views else profile].append(row)
                # one pass through the network, whatever the conditions; most batches have one alone
                first = next(iter(judges)) if len(judges) == 1 else profile
                shadows = [self._shadow(images[i][0], views[i] if views else profile) for i in batch]
                scores, beside = score_halving(first, [images[i][1] for i in batch], profile.fingerprint, shadows)
                for judge, rows in judges.items():
                    values, p_values = scores.values[rows], scores.p_values[rows]
                    if judge is not first:
                        p_values = judge.p_values(values, [images[batch[row]][1].key for row in rows])
                    fingerprint, beyond = counted_under(judge.fingerprint), judge.beyond(values).tolist()
                    for row, p, far in zip(rows, p_values, beyond, strict=True):
                        found[batch[row]] = Judgement(fingerprint, p, far, beside[row])
        return [found[i] for i in range(len(images))]

    def _shadow(self, stream: str, judging: Profile) -> Profile | None:
        """The profile in shadow that scores an image of the stream too, by its calibration of the same condition."""
        shadow = self._shadow_of(stream)
        if shadow is None or shadow.fingerprint == self.of(stream).fingerprint:
            return None  # compared with itself it would only count twice in the windows of rules
        return shadow.conditions.get(judging.condition, shadow)

    def heat(self, images: Sequence[tuple[str, Prepared]]) -> list[Heat | None]:
        """Where each (stream, image) is unusual; None where the profile of its stream has no heat maps.

        Raises:
            detectors.HeatMapError: those of a profile cannot be read.
        """
        found: list[Heat | None] = []
        for profile, group in groupby(images, key=lambda image: self.of(image[0])):
            some = [prepared for _, prepared in group]
            maps = profile.heat_maps(some) if profile.places else [None] * len(some)
            found += [None if heat is None else Heat.of(heat, hottest(heat)) for heat in maps]
        return found


def _probe(profile: Profile) -> None:
    profile.score([profile.prepare(np.zeros((8, 8, 3), np.uint8))])


def layout_of(profile: Profile | Outline) -> Layout:
    """The layout of a profile's bucket vectors."""
    return Layout(
        signals=profile.signals,
        calibration_sizes=profile.calibration_sizes,
        two_sided=profile.two_sided,
        learned=profile.learned,
        dependence=profile.dependence,
        constant=profile.constant,
        mix=profile.mix_signals,
        condition=profile.condition,
    )


def publish_profiles(store: Store, profiles: Profiles) -> None:
    """Write the layouts, manifests and examples of the profiles, for all readers of the counts.

    Raises:
        StoreError: Redis does not answer.
        StoreConfigError: it holds counts of one of them that ours cannot be added to.
    """
    store.catalog.put_layouts(profiles.layouts)
    store.catalog.put_shadows(profiles.shadow_layouts)
    store.catalog.put_profiles(
        {counted_under(profile.fingerprint): json.dumps(profile.manifest) for profile in profiles.all()}
    )
    for profile in profiles.all():
        store.catalog.put_examples(counted_under(profile.fingerprint), profile.examples)


def load_profiles(scoring: ScoringSettings, decoding: DecodingSettings) -> Profiles:
    """Load every profile that the configuration names.

    Raises:
        detectors.ProfileError: one cannot be loaded, or the engine cannot run it; the message names the file.
        ConditionsError: one is not calibrated for a condition that the configuration names.
    """
    from detectors import load_profile  # noqa: PLC0415 - loads torch, see above

    pins = {pointer.address: pointer.pinned() for pointer in pointers(scoring)}

    def beside(address: str) -> Profile | None:
        return load(address) if pins[address] else None

    @cache
    def load(address: str) -> Profile:
        profile = load_profile(pins[address], scoring.device, scoring.engine)
        log.info("scoring.engine", profile=pins[address], engine=profile.runs_by)
        return profile

    limits = Limits(decoding.max_record_bytes, decoding.max_pixels, tuple(decoding.formats))
    overrides = tuple((override.streams, load(override.path)) for override in scoring.profiles)
    shadow = ByStream(None, tuple((entry.streams, beside(entry.version)) for entry in scoring.shadow))
    profiles = Profiles(ByStream(load(scoring.profile), overrides), limits, _conditions(scoring), shadow)
    profiles.pins = pins
    return profiles


def pointers(scoring: ScoringSettings) -> list[Pointer]:
    """One for each address of a profile in the configuration."""
    shadows = (entry.version for entry in scoring.shadow)
    addresses = dict.fromkeys([scoring.profile, *(override.path for override in scoring.profiles), *shadows])
    return [Pointer(address) for address in addresses]


def outline_profiles(scoring: ScoringSettings) -> tuple[dict[str, Layout], list[str]]:
    """The layouts and the oddities of `Profiles` that the configuration names, without torch and its seconds.

    Raises:
        detectors.ProfileError: one cannot be read.
        ConditionsError: as `load_profiles`.
    """
    read, conditions = cache(read_outline), _conditions(scoring)
    overrides = tuple((override.streams, read(override.path)) for override in scoring.profiles)
    by_stream = ByStream(read(scoring.profile), overrides)
    outlines = [*by_stream.all(), *views_in_use(by_stream, conditions)]
    layouts = {counted_under(outline.fingerprint): layout_of(outline) for outline in outlines}
    return layouts, list(misfits(by_stream, conditions))


def _conditions(scoring: ScoringSettings) -> ByStream[ConditionRule | None]:
    return ByStream(None, tuple((rule.streams, rule) for rule in scoring.conditions))
