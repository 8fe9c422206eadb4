"""Answers of people about alerts, under the monitor's own tag: a hash for each alert, and the list of those alerts.

The pictures that an answer speaks of are copied beside it: those of the evidence expire long before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgpack

from monitor.core.feedback import Feedback, Picture, as_fields
from monitor.core.types import Exemplar
from monitor.store.connection import SCRIPTS, Value
from monitor.store.keyspace import MonitorKeys

FEEDBACK_TTL_S = 730 * 86_400
"""An alert's answers and their pictures are removed two years after the last one: long after the alert."""
MOST_BYTES = 256 * 1024
"""Of the pictures of one alert: the dozen shown with it have 170 KB where one has 14, and 192 KB is kept in an hour."""
MOST_ALERTS = 500
"""That have pictures: those answered last. With MOST_BYTES, 125 MiB in all."""


class FeedbackStore:
    """Adds answers and reads them; none is changed. Every method may raise StoreError.

    Args:
        most_bytes, most_alerts: bounds of the pictures, as MOST_BYTES and MOST_ALERTS.
    """

    def __init__(self, keys: MonitorKeys, most_bytes: int = MOST_BYTES, most_alerts: int = MOST_ALERTS) -> None:
        self._keys = keys
        self._alerts = keys.texts("feedback")
        self._limits = most_bytes, most_alerts

    def add(self, answer: Feedback, shown: Sequence[tuple[Exemplar, bytes]] = ()) -> None:
        """Keep one answer and, in the same write, the pictures that it speaks of; a withdrawn one drops them.

        Args:
            shown: (image, its large picture or b""), the worst first; where the large one does not fit within the
                bounds, the thumbnail is kept. None: those of the answer before stay.
        """
        about, withdrawn = answer.about, answer.kind == "withdrawn"
        given: list[Value] = []
        for image, large in () if withdrawn else shown:
            if large or image.thumbnail:
                given += image.name, _packed(image, large, True), _packed(image, image.thumbnail, False)
        text = json.dumps(as_fields(answer), ensure_ascii=False)
        self._run(about.alert_id, answer.id, text, about.image, int(withdrawn), *self._limits, *given)

    def of(self, alert_id: str) -> list[str]:
        """All answers about an alert and its images."""
        return list(self._keys.texts("feedback", alert_id).all().values())

    def all(self) -> list[str]:
        """All answers about all alerts; alerts whose answers have expired leave the list."""
        found: list[str] = []
        for alert_id in sorted(self._alerts.names()):
            answers = self.of(alert_id)
            found += answers
            if not answers:
                self._run(alert_id)
        return found

    def pictures(self, alert_id: str, image: str) -> list[Picture]:
        """Those that are kept with what was said of an image, or of the alert as a whole (""), the worst first.

        None are where they have made room for others, or where a version that kept none took the answer.
        """
        key, connection = self._keys.key("feedback-pictures", alert_id), self._keys.connection
        names = (connection.read("HGET", key, f"of {image}") or b"").split()
        packed = connection.read("HMGET", key, *names) if names else []
        return [Picture(name.decode(), *msgpack.unpackb(p)) for name, p in zip(names, packed, strict=True) if p]

    def _run(self, alert_id: str, *answer: Value) -> None:
        """Answers and list change together: an answer that no list names would never be exported."""
        names = ("feedback", alert_id), ("feedback",), ("feedback-pictures", alert_id), ("feedback-pictures",)
        keys = [self._keys.key(*name) for name in names]
        self._keys.connection.run(SCRIPTS["answer"], keys, FEEDBACK_TTL_S, alert_id, *answer)


def _packed(image: Exemplar, jpeg: bytes, large: bool) -> bytes:
    """The fields of `Picture` after the name; empty without a picture."""
    fields = image.id, image.event_time_ms, image.stream, jpeg, large
    packed: bytes = msgpack.packb(fields) if jpeg else b""
    return packed
