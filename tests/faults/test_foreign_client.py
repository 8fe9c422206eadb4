"""Records of librdkafka, which most clients outside Java use: each counts as what it is, none harms the daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer

from tests.faults.rig import Rig, bounds, wait_for

if TYPE_CHECKING:
    from tests.faults.foreign_records import Foreign

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


class Librdkafka:
    """Writes to the rig's one partition and remembers at which offset each record lies."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.names: dict[int, str] = {}

    def write(self, records: dict[str, Foreign], **options: Any) -> None:
        """In one producer's life; options as librdkafka names them."""
        producer = self._open(**options)
        self._produce(producer, records)
        assert producer.flush(30) == 0

    def write_and_abort(self, records: dict[str, Foreign], codec: str, aborted: bytes) -> None:
        """In a transaction; then another one is aborted, so that the log ends with what nobody may read."""
        producer = self._open(**{"compression.type": codec, "transactional.id": f"{self._rig.name}-{codec}"})
        producer.init_transactions(30)
        producer.begin_transaction()
        self._produce(producer, records)
        producer.commit_transaction(30)
        producer.begin_transaction()
        for value in (aborted, b"never seen"):
            producer.produce(self._rig.topic, value, b"aborted", partition=0)
        producer.flush(30)
        producer.abort_transaction(30)

    def _open(self, **options: Any) -> Producer:
        servers = self._rig.cluster.bootstrap_servers
        return Producer({"bootstrap.servers": servers, "linger.ms": 50, "acks": "all", **options})

    def _produce(self, producer: Producer, records: dict[str, Foreign]) -> None:
        for i, (name, record) in enumerate(records.items()):

            def written(error: object, message: Any, name: str = name) -> None:
                assert error is None, f"{name}: {error}"
                self.names[message.offset()] = name

            key = name.encode() if record.key is None else record.key or None
            at: dict[str, Any] = (
                {} if record.shift_ms is None else {"timestamp": self._rig.start_ms + i * 1000 + record.shift_ms}
            )
            headers = list(record.headers) or None
            producer.produce(
                self._rig.topic, record.value, key, partition=0, headers=headers, on_delivery=written, **at
            )


def test_every_record_of_librdkafka_counts_as_what_it_is(make_rig: Callable[..., Rig]) -> None:
    # its files take a second and a gigabyte to make: not while tests are collected
    from tests.faults.foreign_records import (  # noqa: PLC0415
        MAX_BYTES,
        MAX_IMAGES,
        MAX_PIXELS,
        PNG,
        RECORDS,
        TIME_HEADER,
    )

    settings = {
        "decoding": {
            "max_record_bytes": MAX_BYTES,
            "max_pixels": MAX_PIXELS,
            "max_images_per_record": MAX_IMAGES,
            "worker_memory_bytes": 300_000_000,
        },
        "stream": {"event_time_header": TIME_HEADER},
    }
    rig = make_rig(partitions=1, settings=settings)
    daemon = rig.start()
    writer, names = Librdkafka(rig), list(RECORDS)
    for i, codec in enumerate(CODECS):
        writer.write({name: RECORDS[name] for name in names[i :: len(CODECS) + 1]}, **{"compression.type": codec})
    writer.write_and_abort({name: RECORDS[name] for name in names[len(CODECS) :: len(CODECS) + 1]}, "lz4", PNG)
    assert sorted(writer.names.values()) == sorted(names)

    ((_, end),) = bounds(rig.cluster, rig.partitions).values()
    wait_for("the end of the log", lambda: daemon.check() or rig.stands(0) == end)

    letters = rig.letters()
    found: dict[str, int | str] = {}
    for letter in letters:
        offset = int((letter.key or b"").rpartition(b":")[2])
        found[writer.names[offset]] = (letter.header("layerwatch-reason") or b"").decode()
    assert len(found) == len(letters)
    streams = {record.stream or name: name for name, record in RECORDS.items()}
    totals = rig.store.counts.totals(rig.partitions)
    assert {streams[stream] for stream, total in totals.items() if total.rejected == 1} == set(found)
    found |= {streams[stream]: total.applied for stream, total in totals.items() if total.applied}
    assert found == {name: record.becomes for name, record in RECORDS.items()}
    assert sum(total.rejected for total in totals.values()) == len(letters)

    assert daemon.metric('layerwatch_images_partly_used_total{part="further_pictures"}') == 5
    assert daemon.events("decode.process_lost") == []
    assert daemon.ready()[0] == 200
    assert daemon.terminate() == 0
