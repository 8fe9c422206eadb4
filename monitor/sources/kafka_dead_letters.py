"""Dead letters on Kafka: the unusable record with its story in headers, acknowledged before the cursor moves on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from kafka import KafkaProducer, errors

from monitor.config import Kafka
from monitor.sources.kafka_client import client_options, translated, with_passthrough
from monitor.types import DeadLetter

log = structlog.get_logger(__name__)

MAX_ERROR_CHARS = 2000
FIXED = frozenset({"acks", "allow_auto_create_topics", "enable_idempotence", "key_serializer", "value_serializer"})


class KafkaDeadLetters:
    """Writes to `kafka.dead_letter_topic`; connects on first use.

    A letter's key is the position of the record it tells of (`topic:partition:offset`), so a replay writes the same
    key again and a compacted topic keeps one of each. The original key travels in a header.
    """

    def __init__(self, config: Kafka) -> None:
        self._config = config
        self._producer: KafkaProducer | None = None

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Write them all and wait for the acknowledgements.

        Raises:
            SourceError: not all were acknowledged; write them again after a while.
            FatalSourceError: the topic may not be written.
        """
        if not letters:
            return
        with translated(f"writing dead letters to {self._config.dead_letter_topic}"):
            try:
                self._write(letters)
            except Exception:
                self.close()  # an idempotent producer that failed has lost its sequence
                raise
        log.info("dead_letters.written", letters=len(letters), topic=self._config.dead_letter_topic)

    def close(self) -> None:
        """Free the connection; a later write opens a new one."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            producer.close(timeout=3)

    def _write(self, letters: Sequence[DeadLetter]) -> None:
        producer = self._open()
        sent = [(letter, self._send(producer, letter, letter.record.value or b"")) for letter in letters]
        producer.flush(timeout=self._config.request_timeout_s)
        for letter, future in sent:
            try:
                if future is not None:
                    future.get(timeout=self._config.request_timeout_s)
                    continue
            except (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError):
                pass
            # With its headers the record is larger than the topic takes: where it stands is worth more than nothing.
            self._send(producer, letter, None).get(timeout=self._config.request_timeout_s)

    def _send(self, producer: KafkaProducer, letter: DeadLetter, value: bytes | None) -> Any:
        """A future, or None when the client refuses the size; `value` None leaves the bytes out and says so."""
        headers = letter_headers(letter)
        if value is None:
            headers.append(("layerwatch-value-omitted", str(len(letter.record.value or b"")).encode()))
        try:
            return producer.send(
                self._config.dead_letter_topic,
                key=letter_id(letter).encode(),
                value=b"" if value is None else value,
                headers=headers,
            )
        except errors.MessageSizeTooLargeError:
            if value is None:
                raise
            return None

    def _open(self) -> KafkaProducer:
        if self._producer is None:
            options = client_options(self._config) | {
                "acks": "all",
                "enable_idempotence": True,
                "delivery_timeout_ms": round(self._config.request_timeout_s * 1000) + 1000,
                "max_block_ms": round(self._config.request_timeout_s * 1000),
                "max_request_size": self._config.fetch_max_bytes,
                "metrics_enabled": False,
            }
            self._producer = KafkaProducer(**with_passthrough(self._config, options, KafkaProducer, FIXED))
        return self._producer


def letter_id(letter: DeadLetter) -> str:
    """`topic:partition:offset` of the record: the identity under which a dead letter lands once."""
    return f"{letter.record.partition}:{letter.record.offset}"


def letter_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The original headers, then ours: where the record stood and why it is here."""
    record = letter.record
    ours = {
        "topic": record.partition.topic,
        "partition": str(record.partition.index),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp_ms),
        "stream": letter.stream,
        "reason": letter.reason,
        "error": letter.error[:MAX_ERROR_CHARS],
    }
    headers = [*record.headers, *((f"layerwatch-{name}", value.encode()) for name, value in ours.items())]
    return headers if record.key is None else [*headers, ("layerwatch-key", record.key)]
