"""Feedback of people about alerts, for the command line and the web alike: given, read, and its images."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import structlog

from monitor.core.feedback import About, Feedback, FeedbackKind, as_fields, from_json, in_force
from monitor.core.types import Exemplar
from monitor.fleet.overview import Snapshot
from monitor.fleet.stream_view import Asked, view_stream
from monitor.store import Store
from monitor.telemetry.clock import wall_ms

log = structlog.get_logger(__name__)

MOST_IMAGES = 1000
"""Of one alert that are looked through: more than are kept."""


class FeedbackError(ValueError):
    """The feedback is about nothing that is here; the message says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody says; `image` is the id of one of the alert's images, empty for the alert as a whole."""

    alert_id: str
    kind: FeedbackKind
    image: str = ""
    author: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class KeptImage:
    """A picture that is kept of an image; a thumbnail where no large one is."""

    answer: Feedback
    image: Exemplar
    jpeg: bytes
    large: bool


def give_feedback(store: Store, snapshot: Snapshot, wanted: Wanted) -> Feedback:
    """Keep what somebody says of an alert that is still listed, or of one of the images shown with it.

    Raises:
        FeedbackError: there is no such alert, or no such image of it.
        StoreError: Redis does not answer.
    """
    alert = next((alert for alert in snapshot.alerts if alert.id == wanted.alert_id), None)
    if alert is None:
        raise FeedbackError("alert_id: no such alert; those that ended are listed for a week")
    view = view_stream(store, snapshot, alert.stream, Asked(alert.id))
    if wanted.image and wanted.image not in {exemplar.id for exemplar in view.exemplars}:
        raise FeedbackError("image: no image of that id is shown with the alert")
    span = view.evidence.since, view.evidence.until
    about = About(alert.id, alert.rule, alert.stream, *span, wanted.image)
    before = in_force(read_feedback(store, alert.id)).get((alert.id, wanted.image))
    answer = Feedback(
        uuid.uuid4().hex[:12],
        about,
        wanted.kind,
        wanted.author,
        wanted.comment,
        wall_ms(),
        before.kind if before else None,
    )
    store.feedback.add(alert.id, answer.id, json.dumps(as_fields(answer), ensure_ascii=False))
    log.info("feedback.given", **as_fields(answer))
    return answer


def read_feedback(store: Store, alert_id: str = "") -> list[Feedback]:
    """All answers, or those about one alert and its images, in the order in which they were given.

    One that cannot be read is left out.

    Raises:
        StoreError: Redis does not answer.
    """
    found = []
    for text in store.feedback.of(alert_id) if alert_id else store.feedback.all():
        try:
            found.append(from_json(text))
        except ValueError as error:
            log.warning("feedback.unreadable", error=str(error))
    return sorted(found, key=lambda answer: (answer.at_ms, answer.id))


def images_of(store: Store, snapshot: Snapshot, answers: Iterable[Feedback], kind: FeedbackKind) -> Iterator[KeptImage]:
    """The pictures that are still kept of what counts as `kind`, each once; the images of an alert with its answer.

    What was said of an image goes before what was said of its alert.

    Raises:
        StoreError: Redis does not answer.
    """
    counts = in_force(answers)
    given: set[str] = set()
    for answer in sorted((a for a in counts.values() if a.kind == kind), key=lambda a: (not a.about.image, a.at_ms)):
        for image in _images(store, snapshot, answer.about):
            own = counts.get((answer.about.alert_id, image.id), answer)
            if own.kind == kind and answer.about.image in {"", image.id} and image.name not in given:
                given.add(image.name)
                large = store.pictures.of(snapshot.partitions, image, image.name)
                if large or image.thumbnail:
                    yield KeptImage(own, image, large or image.thumbnail, bool(large))


def _images(store: Store, snapshot: Snapshot, about: About) -> list[Exemplar]:
    span = about.stream, about.since_ms, about.until_ms
    found: Mapping[str, Exemplar] = {
        image.name: image
        for fingerprint in snapshot.layouts
        for image in store.exemplars.unusual(snapshot.partitions, fingerprint, *span, MOST_IMAGES)
    }
    return list(found.values())
