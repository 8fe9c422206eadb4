"""Writing records and dead letters to Kafka: idempotent, acknowledged by all in-sync replicas, bounded in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from kafka import KafkaProducer, errors

from monitor.core.types import DeadLetter
from monitor.sources.kafka.client import client_options, connect, describe, translated, with_passthrough
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.letters import letter_headers, letter_id, origin_headers
from monitor.sources.protocol import FatalSourceError, Headers, SourceError

log = structlog.get_logger(__name__)

MAX_BYTES_IN_FLIGHT = 16 * 2**20
"""kafka-python buffers without a limit of its own; beyond this `send` waits until all is acknowledged."""
METADATA_WAIT_S = 5.0
CLOSE_TIMEOUT_S = 3.0

FIXED = frozenset({"acks", "allow_auto_create_topics", "enable_idempotence", "key_serializer", "value_serializer"})


def producer_options(config: KafkaSettings) -> dict[str, Any]:
    """What a producer is built with; errors as `client_options` and `with_passthrough`."""
    options = client_options(config) | {
        "acks": "all",
        "enable_idempotence": True,
        "delivery_timeout_ms": round(config.request_timeout_s * 1000) + 1000,
        "max_block_ms": round(min(METADATA_WAIT_S, config.request_timeout_s) * 1000),
        # what the consumer can fetch can be written as a letter; the topic's own limit decides
        "max_request_size": config.fetch_max_bytes,
    }
    return with_passthrough(config, options, KafkaProducer, FIXED)


class KafkaRecordProducer:
    """`monitor.sources.Producer` on Kafka. Belongs to one thread.

    Connects on first use, and again after a failure: an idempotent producer that failed has lost its sequence.
    """

    def __init__(self, config: KafkaSettings) -> None:
        self._config = config
        self._producer: KafkaProducer | None = None
        self._topics: set[str] = set()
        self._in_flight: list[Any] = []
        self._bytes_in_flight = 0

    def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Headers = (), timestamp_ms: int | None = None
    ) -> None:
        with _refusing_size(topic):
            self._in_flight.append(self.submit(topic, value, key, headers, timestamp_ms))
        self._bytes_in_flight += len(value)
        if self._bytes_in_flight > MAX_BYTES_IN_FLIGHT:
            self.flush()

    def flush(self) -> None:
        sent, self._in_flight, self._bytes_in_flight = self._in_flight, [], 0
        with _refusing_size("the topic"):
            for future in sent:
                self.await_written(future)

    def close(self) -> None:
        producer, self._producer = self._producer, None
        self._topics.clear()
        self._in_flight, self._bytes_in_flight = [], 0
        if producer is None:
            return
        try:
            producer.close(timeout=CLOSE_TIMEOUT_S)
        except Exception as error:
            log.warning("kafka.close_failed", part="producer", error=describe(error))
            # it refuses to end while records wait for an absent broker; nobody waits for them any more
            producer._sender.force_close()

    def submit(
        self, topic: str, value: bytes, key: bytes | None, headers: Headers, timestamp_ms: int | None = None
    ) -> Any:
        """Hand one record over; returns what `await_written` takes.

        Raises:
            MessageSizeTooLargeError: larger than this client sends (the producer goes on working).
            SourceError, FatalSourceError: see `Producer.send`.
        """
        try:
            with translated(f"writing to {topic}", errors.MessageSizeTooLargeError):
                producer = self._opened(topic)
                return producer.send(topic, value=value, key=key, headers=list(headers), timestamp_ms=timestamp_ms)
        except (SourceError, FatalSourceError):
            self.close()
            raise

    def await_written(self, future: Any) -> None:
        """Wait for the acknowledgement of one record.

        Raises:
            MessageSizeTooLargeError: it, or another one that was on its way, is larger than the topic takes: after the
                first error the client fails everything.
            SourceError, FatalSourceError: see `Producer.flush`.
        """
        try:
            with translated("waiting for an acknowledgement", errors.MessageSizeTooLargeError):
                future.get(timeout=self._config.request_timeout_s + METADATA_WAIT_S)
        except Exception:
            self.close()
            raise

    def _opened(self, topic: str) -> KafkaProducer:
        if self._producer is None:
            self._producer = connect(KafkaProducer, producer_options(self._config))
        if topic not in self._topics:
            try:
                self._producer.partitions_for(topic)
            except errors.KafkaTimeoutError as error:
                raise SourceError(f"kafka: topic {topic} does not exist, or no broker answers: {error}") from error
            self._topics.add(topic)
        return self._producer


class KafkaDeadLetters(KafkaRecordProducer):
    """Writes unusable records, with the reason in their headers, to `kafka.dead_letter_topic`.

    A letter's key is the position of its record (`topic:partition:offset`), so a replay writes the same key again and
    a compacted topic keeps one of each. The original key travels in a header.
    """

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Write them all and wait for the acknowledgements.

        Raises:
            SourceError: not all were acknowledged; write them again after a while.
            FatalSourceError: the topic may not be written.
        """
        if not letters:
            return
        try:
            for future in [self._submit_letter(letter) for letter in letters]:
                self.await_written(future)
        except errors.MessageSizeTooLargeError:
            # One that is too large makes those beside it fail. Some may be written: a second one has the same key.
            for letter in letters:
                self._write_alone(letter)

    def _submit_letter(self, letter: DeadLetter) -> Any:
        topic, value = self._config.dead_letter_topic, letter.record.value or b""
        return self.submit(topic, value, letter_id(letter).encode(), letter_headers(letter))

    def _write_alone(self, letter: DeadLetter) -> None:
        try:
            self.await_written(self._submit_letter(letter))
        except errors.MessageSizeTooLargeError:
            # with its headers the record is larger than the topic takes: its position is worth more than nothing
            omitted = ("layerwatch-value-omitted", str(len(letter.record.value or b"")).encode())
            headers = [*origin_headers(letter), omitted]
            self.send(self._config.dead_letter_topic, b"", letter_id(letter).encode(), headers)
            self.flush()


@contextmanager
def _refusing_size(topic: str) -> Iterator[None]:
    try:
        yield
    except errors.MessageSizeTooLargeError as error:
        raise FatalSourceError(f"kafka: a record is larger than {topic} takes: {describe(error)}") from error
