"""How far damage in a Kafka log reaches: the offsets of the one record batch that cannot be read.

A batch is checked and unpacked whole, so a damaged one costs all its records and no others. Its header says where it
ends, but the header may be what is damaged; so the end is found by reading: a fetch from any offset inside starts with
that batch and fails in it, a fetch from beyond does not.
"""

from __future__ import annotations

import time
import traceback
from bisect import bisect_left

from kafka import KafkaConsumer, TopicPartition, errors

from monitor.core.types import Partition
from monitor.sources.kafka.client import client_options, connect, translated, with_passthrough
from monitor.sources.kafka.group import FIXED
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.protocol import SourceError

PROBE_S = 10.0
"""For one look into the log; an answer takes milliseconds."""


def is_damage(error: Exception) -> bool:
    """Whether the content of the log caused this, not the connection: a checksum, a codec, a parser error."""
    if isinstance(error, errors.CorruptRecordError | errors.UnsupportedCodecError):
        return True
    return not isinstance(error, errors.KafkaError | OSError) and batch_start(error) is not None


def batch_start(error: BaseException) -> int | None:
    """Base offset of the batch that was being unpacked when this was raised; None where none was."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_unpack_records" and (batch := frame.f_locals.get("batch")) is not None:
            return int(batch.base_offset)
    return None


class Probe:
    """Looks into one partition without a group. Close it."""

    def __init__(self, config: KafkaSettings, partition: Partition) -> None:
        self._config = config
        self._at = TopicPartition(partition.topic, partition.index)
        self._consumer: KafkaConsumer | None = None

    def damage_end(self, next_offset: int, end: int) -> int:
        """First offset after `next_offset` that is not in the batch which fails there; `end` of the log at most.

        Raises:
            SourceError: no answer; try again.
        """
        failing = self._failing_batch(next_offset)
        if failing is None:  # it can be read now: another replica of the partition leads
            return next_offset
        inside, step = next_offset, 1
        while inside + step < end and self._failing_batch(inside + step) == failing:
            inside, step = inside + step, 2 * step
        rest = range(inside + 1, min(inside + step, end))
        return inside + 1 + bisect_left(rest, True, key=lambda offset: self._failing_batch(offset) != failing)

    def close(self) -> None:
        """Free the connection."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close(autocommit=False)

    def _failing_batch(self, offset: int) -> int | None:
        """Base offset of the batch that a fetch from there fails in (-1: not known); None where it can be read."""
        with translated("looking for the end of the damage"):
            consumer = self._consumer = self._consumer or self._open()
            consumer.seek(self._at, offset)
            deadline = time.monotonic() + PROBE_S
            while time.monotonic() < deadline:
                try:
                    batches = consumer.poll(timeout_ms=200, max_records=1)
                except Exception as error:
                    self.close()  # never polled again
                    if not is_damage(error):
                        raise
                    start = batch_start(error)
                    return -1 if start is None else start
                if batches or consumer.position(self._at, timeout_ms=0) != offset:
                    return None
        raise SourceError(f"kafka: no answer at {offset} of {self._at.topic}:{self._at.partition}")

    def _open(self) -> KafkaConsumer:
        options = client_options(self._config) | {
            "group_id": None,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "check_crcs": True,
        }
        consumer = connect(KafkaConsumer, with_passthrough(self._config, options, KafkaConsumer, FIXED))
        consumer.assign([self._at])
        return consumer
