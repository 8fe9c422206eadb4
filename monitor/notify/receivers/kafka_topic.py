"""A Kafka topic, as CloudEvents in binary mode: attributes in headers, the document as the value."""

from __future__ import annotations

import threading
from typing import Literal

from monitor.notify.receivers.notice import Notice, time_ms
from monitor.notify.receivers.protocol import Delivered, OpenProducer, Outcome, Receiver, ReceiverSettings, Retry
from monitor.sources import Producer
from monitor.sources.protocol import FatalSourceError, SourceError

CLOSE_TIMEOUT_S = 1.0


class KafkaTopicSettings(ReceiverSettings):
    """CloudEvents in binary mode on a topic of the same cluster, keyed by the alert."""

    type: Literal["kafka"]
    topic: str = "layerwatch.alerts"

    def build(self, open_producer: OpenProducer, /) -> Receiver:
        return KafkaTopicSender(self, open_producer())


class KafkaTopicSender(Receiver):
    """Writes documents keyed by the alert's id: one alert's documents stay in order, and a compacted topic keeps its
    last state.

    Args:
        producer: for this receiver alone, which also closes it.
    """

    def __init__(self, settings: KafkaTopicSettings, producer: Producer) -> None:
        super().__init__(settings)
        self._topic = settings.topic
        self._producer = producer
        # producers belong to one thread at a time; one that a former dispatcher left behind may still be in a send
        self._busy = threading.Lock()

    def send(self, notice: Notice) -> Outcome:
        attributes = {
            "ce_specversion": "1.0",
            "ce_id": notice.id,
            "ce_type": f"layerwatch.{notice.type}",
            "ce_source": f"/layerwatch/{notice.monitor}",
            "ce_subject": notice.stream,
            "ce_time": notice.timestamp,
            "content-type": "application/json",
        }
        try:
            with self._busy:
                self._producer.send(
                    topic=self._topic,
                    value=notice.document.encode(),
                    key=notice.alert_id.encode(),
                    headers=[(name, value.encode()) for name, value in attributes.items()],
                    timestamp_ms=time_ms(notice.timestamp),
                )
                self._producer.flush()
        # also what is fatal to a source: a topic can be created and a right granted within three days
        except (SourceError, FatalSourceError) as error:
            return Retry(str(error))
        return Delivered()

    def close(self) -> None:
        free = self._busy.acquire(timeout=CLOSE_TIMEOUT_S)
        self._producer.close()
        if free:
            self._busy.release()
