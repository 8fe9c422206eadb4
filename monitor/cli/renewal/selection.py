"""Which images a renewal learns from: those of calm, judged times of streams that rules watch, few of each hour.

The log is read once to choose, and again each time the chosen images are needed: they are never all in memory or on
disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from detectors.images.decode import ImageError
from detectors.images.prepare import AnyImage
from detectors.images.reading import InputError
from detectors.versions.store import split_address
from monitor.cli.learning import STREAM_IMAGES
from monitor.config.schema import Config
from monitor.core.alert_state import UNDER_WAY
from monitor.core.calm import HOUR_MS, Spans, Thinned, covers, unrest
from monitor.core.feedback import in_force
from monitor.core.types import PastAlert, Record, RecordImage
from monitor.evaluate.settings import MARGIN_S, MAX_SHIFT, SINCE_S
from monitor.fleet.feedback import read_feedback
from monitor.ingest.by_stream import ByStream
from monitor.ingest.decode.records import expand, stream_of
from monitor.ingest.decode.remote import UnavailableError
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.decode.wrapped import ValueReader
from monitor.sources.protocol import FatalSourceError, SourceError
from monitor.sources.read_back import read_back
from monitor.store import Store
from monitor.store.shards import whole_state

if TYPE_CHECKING:  # loads torch
    from detectors import Profile

LEAST_HOURS = 10
"""Calm hours that images must come from: none gives more than a tenth of them."""
STILL_ON_MS = 2**52
"""End of an alert that is under way."""

Place = tuple[str, int, int, int]
"""(topic, partition, offset, number in the record) of an image."""
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a renewal.

    profile: a store of profiles, or STORE@VERSION; the active version by default. accept: why a candidate that has
    moved by more than `max_shift` is right; empty refuses it.
    """

    profile: str
    streams: str
    since_s: float = SINCE_S
    margin_s: float = MARGIN_S
    most: int = STREAM_IMAGES
    calibrate_only: bool = False
    expected: bool = False
    max_shift: float = MAX_SHIFT
    accept: str = ""
    reason: str = ""
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a renewal asks for."""

    streams: str
    """Glob."""
    since_ms: int
    margin_ms: int
    """How long before and after an alert, and before what was judged last, a stream is not calm."""
    most: int
    """Images."""
    expected: bool = False
    """Whether images that people called expected count as calm."""


@dataclass(frozen=True, slots=True)
class Calm:
    """What the monitor knows of calm: event times in ms."""

    unrest: Mapping[str, Spans]
    """By stream."""
    since_ms: int
    """Alerts are known since then."""
    until_ms: int
    """Images are judged until then, less the margin."""
    expected: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """{stream: ids of images that people called expected}: they join, whatever the time."""
    faults: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Likewise, called faults: they never join."""

    def why_not(self, image: RecordImage) -> str:
        """Why an image is left out; empty where it may join."""
        stream, at_ms = image.stream, image.event_time_ms
        if image.id in self.faults.get(stream, ()):
            return "called a fault"
        if at_ms < self.since_ms:
            return "before the monitor remembers alerts"
        if at_ms >= self.until_ms:
            return "too new: not judged for long enough"
        if image.id in self.expected.get(stream, ()):
            return ""
        return "during an alert, or near one" if covers(self.unrest.get(stream, ()), at_ms) else ""


def read_calm(store: Store, settings: Config, wanted: Wanted) -> Calm:
    """What Redis knows.

    Raises:
        InputError: it knows of no alerts: nothing was decided yet.
        StoreError: Redis does not answer.
    """
    past, decided_ms = store.shards.past_alerts(), whole_state(store.shards.states()).bucket_ms
    if past.known_since_ms is None or decided_ms is None:
        raise InputError("the monitor has judged nothing yet, so no time is known to be calm")
    # those that ended lately are kept as alerts, too; a version before may have ended them
    kept = [alert for alert in store.shards.alerts().values() if alert.id]
    alerts = [
        PastAlert(a.rule, a.stream, a.id, a.since_ms, STILL_ON_MS if a.phase in UNDER_WAY else a.resolved_ms)
        for a in kept
    ]
    answers = in_force(read_feedback(store))
    called = {kind: {s for s, answer in answers.items() if answer.kind == kind} for kind in ("expected", "fault")}

    def images(kind: str) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = {}
        for subject in called[kind]:
            if subject[1]:
                found.setdefault(answers[subject].about.stream, set()).add(subject[1])
        return {stream: frozenset(ids) for stream, ids in found.items()}

    as_calm = {alert_id for alert_id, image in called["expected"] if not image} if wanted.expected else set()
    margins = {rule.name: rule.window_ms for rule in settings.rules}
    disturbing = [alert for alert in [*past.alerts, *alerts] if alert.id not in as_calm]
    return Calm(
        unrest=unrest(disturbing, margins, wanted.margin_ms),
        since_ms=past.known_since_ms + wanted.margin_ms,  # rules are slow to begin, too
        until_ms=decided_ms + settings.buckets.length_ms - wanted.margin_ms,
        expected=images("expected") if wanted.expected else {},
        faults=images("fault"),
    )


@dataclass
class Selection:
    """The chosen images.

    Args:
        address: of the store whose profile is renewed: only streams that it judges count.
    """

    settings: Config
    wanted: Wanted
    calm: Calm
    profile: Profile
    address: str
    chosen: dict[Place, str] = field(default_factory=dict)
    """Image -> its condition; empty where the profile's own calibration judges it."""
    hours: int = 0
    streams: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    """Images of the streams by why they were left out."""

    def choose(self, progress: Progress) -> None:
        """Read the log once.

        Raises:
            InputError: no image is left, or those of too few hours; or the source does not answer.
        """
        if not any(_same_place(address, self.address) for address in _addresses(self.settings).all()):
            raise InputError(f"{self.address}: scoring.profile and scoring.profiles judge no stream by this store")
        thinned = {name: Thinned[Place](self.wanted.most) for name in ("", *self.profile.conditions)}
        seen = Counter[str]()
        for place, record, image in self._images():
            if not seen.total() % 1000:
                progress("choosing images of calm times", -1.0)
            seen[image.stream] += 1
            if why := self._why_not(image):
                self.left_out[why] += 1
                continue
            condition = self._condition(record, image)
            if condition is None:
                self.left_out["broken"] += 1
                continue
            hour = image.event_time_ms // HOUR_MS * HOUR_MS
            thinned[condition].offer((image.stream, hour), f"{image.stream}\0{image.id}\0{place}", place)
        if not seen:
            raise InputError(f"the source holds no image of a stream {self.wanted.streams!r} in that time")
        cells = {name: of.chosen() for name, of in thinned.items()}
        self.chosen = {place: name for name, found in cells.items() for places in found.values() for place in places}
        self.left_out["not chosen: enough of that hour"] = seen.total() - len(self.chosen) - self.left_out.total()
        self.hours = len({hour for found in cells.values() for _, hour in found})
        self.streams = tuple(sorted({stream for found in cells.values() for stream, _ in found}))
        if self.hours < LEAST_HOURS:
            raise InputError(
                f"images of calm times come from {self.hours} hours; {LEAST_HOURS} are needed, so that none gives more "
                f"than a tenth of them ({self.what_was_left_out()})"
            )

    def images(self, condition: str = "") -> Iterator[tuple[str, AnyImage]]:
        """(id, image) of the chosen ones of a condition, oldest first within each partition; errors as `choose`."""
        for place, _, image in self._images():
            if self.chosen.get(place) == condition:
                yield image.id, image.image

    def count(self, condition: str = "") -> int:
        """How many there are."""
        return sum(name == condition for name in self.chosen.values())

    def what_was_left_out(self) -> str:
        """In words."""
        found = [f"{count} {why}" for why, count in self.left_out.most_common() if count]
        return "left out: " + "; ".join(found) if found else "nothing was left out"

    def _images(self) -> Iterator[tuple[Place, Record, RecordImage]]:
        reader = ValueReader(self.settings.decoding, self.settings.value)
        is_judged = cache(self._is_judged)
        try:
            for record in read_back(self.settings.source_settings(), self.wanted.since_ms):
                if not is_judged(stream_of(record, self.settings.stream)):
                    continue
                try:
                    images = expand(record, self.settings.stream, reader)
                except DecodeError:
                    continue
                where = record.partition
                for i, image in enumerate(images):
                    yield (where.topic, where.index, record.offset, i), record, image
        except (SourceError, FatalSourceError, UnavailableError) as error:
            raise InputError(str(error)) from error

    def _is_judged(self, stream: str) -> bool:
        judged = _same_place(_addresses(self.settings).of(stream), self.address)
        return judged and fnmatchcase(stream, self.wanted.streams)

    def _why_not(self, image: RecordImage) -> str:
        rules = self.settings.rules
        if not any(rule.reads_images and not rule.reads_clock and rule.watches(image.stream) for rule in rules):
            return "no rule judges the images of that stream"
        if image.event_time_ms < self.wanted.since_ms:
            return "too old"
        return self.calm.why_not(image)

    def _condition(self, record: Record, image: RecordImage) -> str | None:
        """The condition that the daemon would judge the image by; None where it cannot be decoded."""
        rule = next((r for r in self.settings.scoring.conditions if fnmatchcase(image.stream, r.streams)), None)
        if rule is None or not self.profile.conditions:
            return ""
        try:
            prepared = self.profile.prepare(image.image, image.id.encode())
        except ImageError:
            return None
        name = rule.namer()(record, image.event_time_ms, prepared) or ""
        return name if name in self.profile.conditions else ""


def _addresses(settings: Config) -> ByStream[str]:
    """The profile that judges each stream, as the configuration names it."""
    scoring = settings.scoring
    return ByStream(scoring.profile, tuple((override.streams, override.path) for override in scoring.profiles))


def _same_place(address: str, root: str) -> bool:
    """Whether the address names that store, or a version in it."""
    one, other = (
        place if "://" in place else str(Path(place).resolve()) for place in (split_address(address)[0], root)
    )
    return one.rstrip("/") == other.rstrip("/")
