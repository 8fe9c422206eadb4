"""Feedback of people about alerts, for the command line and the web alike: given, read, and its images."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import structlog

from monitor.core.feedback import LABEL, About, Feedback, FeedbackKind, Picture, as_fields, from_json, in_force
from monitor.fleet.overview import Snapshot
from monitor.fleet.stream_view import Asked, view_stream
from monitor.store import Store
from monitor.telemetry.clock import wall_ms

log = structlog.get_logger(__name__)

MOST_IMAGES = 1000
"""Of the evidence of one alert that are looked through: more than are kept."""


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
    label: str = ""


def give_feedback(store: Store, snapshot: Snapshot, wanted: Wanted) -> Feedback:
    """Keep what somebody says of an alert that is still listed, or of one of the images shown with it.

    The pictures that it speaks of are kept with it.

    Raises:
        FeedbackError: there is no such alert, or no such image of it; or the label cannot name a folder.
        StoreError: Redis does not answer.
    """
    if wanted.label and not re.fullmatch(LABEL, wanted.label):
        raise FeedbackError("label: letters, digits, dots, dashes and underscores, 63 at most, such as scratches")
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
        wanted.label,
    )
    spoken_of = [image for image in view.worst if wanted.image in {"", image.id}]
    store.feedback.add(
        answer, [(image, store.pictures.of(snapshot.partitions, image, image.name)) for image in spoken_of]
    )
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


def images_of(
    store: Store, snapshot: Snapshot, answers: Iterable[Feedback], kind: FeedbackKind
) -> Iterator[tuple[Feedback, Picture]]:
    """(answer, picture) of what counts as `kind`, each picture once; the images of an alert with its answer.

    What was said of an image goes before what was said of its alert.

    Raises:
        StoreError: Redis does not answer.
    """
    counts = in_force(answers)
    given: set[str] = set()
    for answer in sorted((a for a in counts.values() if a.kind == kind), key=lambda a: (not a.about.image, a.at_ms)):
        about = answer.about
        for picture in store.feedback.pictures(about.alert_id, about.image) or _evidence(store, snapshot, about):
            own = counts.get((about.alert_id, picture.image), answer)
            if own.kind == kind and picture.name not in given:
                given.add(picture.name)
                yield own, picture


def _evidence(store: Store, snapshot: Snapshot, about: About) -> Iterator[Picture]:
    """What is still kept as evidence, for an answer that has no pictures of its own."""
    span = about.stream, about.since_ms, about.until_ms
    for fingerprint in snapshot.layouts:
        for image in store.exemplars.unusual(snapshot.partitions, fingerprint, *span, MOST_IMAGES):
            if about.image in {"", image.id}:
                large = store.pictures.of(snapshot.partitions, image, image.name)
                if jpeg := large or image.thumbnail:
                    yield Picture(image.name, image.id, image.event_time_ms, image.stream, jpeg, bool(large))
