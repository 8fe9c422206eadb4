"""A Kafka topic, as CloudEvents in binary mode: attributes in headers, the document as the value."""

from __future__ import annotations

import threading

from monitor.notify.receivers.notice import Notice, parse_notice, time_ms
from monitor.notify.receivers.protocol import Delivered, Outcome, Retry
from monitor.notify.receivers.settings import KafkaTopicSettings
from monitor.sources import Producer
from monitor.sources.protocol import FatalSourceError, SourceError

CLOSE_TIMEOUT_S = 1.0


class KafkaTopicSender:
    """Writes documents keyed by the alert's id, so one alert's documents stay in order and a compacted topic keeps its
    last state.

    Args:
        producer: for this receiver alone, which also closes it: producers belong to one thread.
    """

    def __init__(self, settings: KafkaTopicSettings, monitor: str, producer: Producer) -> None:
        self.name = settings.name
        self.send_resolved = settings.send_resolved
        self._topic = settings.topic
        self._monitor = monitor
        self._producer = producer
        # a thread that a former dispatcher left behind may still be in a send
        self._busy = threading.Lock()

    def send(self, document: str, attempt: int) -> Outcome:
        """Try once, and wait for the acknowledgement."""
        del attempt
        notice = parse_notice(document)
        try:
            with self._busy:
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
        """Free the producer."""
        free = self._busy.acquire(timeout=CLOSE_TIMEOUT_S)
        self._producer.close()
        if free:
            self._busy.release()

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
