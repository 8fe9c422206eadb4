"""A Kafka topic, as CloudEvents in binary mode: attributes in headers, the document as the value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from monitor.config import KafkaReceiver
from monitor.notify.notice import Notice, parse_notice, time_ms
from monitor.notify.receiver import Delivered, Outcome, Retry
from monitor.types import FatalSourceError, SourceError


class Producer(Protocol):
    """What is needed of `monitor.sources.open_producer`'s."""

    def send(
        self,
        topic: str,
        value: bytes,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """Hand one record over."""

    def flush(self) -> None:
        """Return when all that was handed over is acknowledged; raises where one is not."""

    def close(self) -> None:
        """Free everything; never raises."""


class KafkaTopicSender:
    """Writes documents keyed by the alert's id, so one alert's documents stay in order and a compacted topic keeps its
    last state. The producer stays its owner's to close."""

    def __init__(self, settings: KafkaReceiver, monitor: str, producer: Producer) -> None:
        self.name = settings.name
        self.send_resolved = settings.send_resolved
        self._topic = settings.topic
        self._monitor = monitor
        self._producer = producer

    def send(self, document: str, attempt: int) -> Outcome:
        """Try once, and wait for the acknowledgement."""
        del attempt
        notice = parse_notice(document)
        try:
            self._producer.send(
                topic=self._topic,
                value=document.encode(),
                key=notice.alert_id.encode(),
                headers=self._headers(notice),
                timestamp_ms=time_ms(notice.timestamp),
            )
            self._producer.flush()
        # also what is fatal to a source: a topic can be created and a right granted within three days
        except (SourceError, FatalSourceError) as error:
            return Retry(str(error))
        return Delivered()

    def close(self) -> None:
        """Nothing: the producer is shared."""

    def _headers(self, notice: Notice) -> list[tuple[str, bytes]]:
        attributes = {
            "ce_specversion": "1.0",
            "ce_id": notice.id,
            "ce_type": f"layerwatch.{notice.type}",
            "ce_source": f"/layerwatch/{self._monitor}",
            "ce_subject": notice.stream,
            "ce_time": notice.timestamp,
            "content-type": "application/json",
        }
        return [(name, value.encode()) for name, value in attributes.items()]
