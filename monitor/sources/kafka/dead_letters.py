"""Dead letters on Kafka: the unusable record with its story in headers, acknowledged before the cursor moves on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from kafka import errors

from monitor.core.types import DeadLetter
from monitor.sources.kafka.producer import KafkaRecordProducer
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.letters import letter_headers, letter_id, story_headers

log = structlog.get_logger(__name__)


class KafkaDeadLetters:
    """Writes to `kafka.dead_letter_topic`; connects on first use.

    A letter's key is the position of the record it tells of (`topic:partition:offset`), so a replay writes the same
    key again and a compacted topic keeps one of each. The original key travels in a header.
    """

    def __init__(self, config: KafkaSettings) -> None:
        self._topic = config.dead_letter_topic
        self._producer = KafkaRecordProducer(config)

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Write them all and wait for the acknowledgements.

        Raises:
            SourceError: not all were acknowledged; write them again after a while.
            FatalSourceError: the topic may not be written.
        """
        if not letters:
            return
        try:
            for future in [self._submit(letter) for letter in letters]:
                self._producer.await_written(future)
        except errors.MessageSizeTooLargeError:
            # One that is too large takes those beside it along. Some may have landed: a second one has the same key.
            for letter in letters:
                self._write_alone(letter)
        log.info("dead_letters.written", letters=len(letters), topic=self._topic)

    def close(self) -> None:
        """Free the connection; a later write opens a new one."""
        self._producer.close()

    def _submit(self, letter: DeadLetter) -> Any:
        value, key = letter.record.value or b"", letter_id(letter).encode()
        return self._producer.submit(self._topic, value, key, letter_headers(letter))

    def _write_alone(self, letter: DeadLetter) -> None:
        try:
            self._producer.await_written(self._submit(letter))
        except errors.MessageSizeTooLargeError:
            # with its headers the record is larger than the topic takes: where it stood is worth more than nothing
            omitted = ("layerwatch-value-omitted", str(len(letter.record.value or b"")).encode())
            self._producer.send(self._topic, b"", letter_id(letter).encode(), [*story_headers(letter), omitted])
            self._producer.flush()
