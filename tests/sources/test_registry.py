"""Adding a source: one package and one line of the registry; docs/how-to/add-a-source.md says the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import pytest
from pydantic import SecretStr

from monitor.config.schema import Config
from monitor.core.settings import Names, Section
from monitor.core.types import DeadLetter, Partition, Record
from monitor.sources import SOURCES, Producer, Source, SourceKind, SourceSettings, open_producer, open_source
from monitor.sources.protocol import Headers, Polled
from monitor.sources.read_back import read_back
from monitor.store.settings import RedisSettings

LOGS: dict[str, list[Record]] = defaultdict(list)
GROUPS: list[str] = []


class MemorySettings(Section):
    topics: Names = ("images",)
    dead_letter_topic: str = "images.dead-letter"
    start: Literal["earliest", "latest"] = "earliest"


class MemorySource:
    """One partition per topic, all owned by whoever opens it."""

    def __init__(self, topics: Sequence[str]) -> None:
        self._fresh = self._all = tuple(Partition(topic, 0) for topic in topics)
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()

    @property
    def generation(self) -> int:
        return 1

    def poll(self, timeout_s: float) -> Polled:
        assigned, self._fresh = self._fresh, ()
        records = {p: LOGS[p.topic][at:] for p, at in self._positions.items() if p not in self._paused}
        records = {p: batch for p, batch in records.items() if batch}
        moved = {p: batch[-1].offset + 1 for p, batch in records.items()}
        self._positions |= moved
        return Polled(records, moved, assigned)

    def start(self, partition: Partition, next_offset: int) -> None:
        self._positions[partition] = next_offset

    def pause(self, partitions: Sequence[Partition]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self._paused -= set(partitions)

    def partitions(self) -> tuple[Partition, ...]:
        return self._all

    def bounds(self, partition: Partition) -> tuple[int, int]:
        return 0, len(LOGS[partition.topic])

    def offset_at(self, partition: Partition, time_ms: int) -> int:
        found = (record.offset for record in LOGS[partition.topic] if record.timestamp_ms >= time_ms)
        return next(found, len(LOGS[partition.topic]))

    def committed(self, partition: Partition) -> int | None:
        return None

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        pass

    def log_id(self, partition: Partition) -> str:
        return ""

    def readable_from(self, partition: Partition, next_offset: int) -> int:
        return next_offset + 1

    def dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryProducer:
    """Appends to the logs at once."""

    def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Headers = (), timestamp_ms: int | None = None
    ) -> None:
        log = LOGS[topic]
        log.append(Record(Partition(topic, 0), len(log), timestamp_ms or 0, key, value, tuple(headers)))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _open_source(settings: SourceSettings[MemorySettings]) -> Source:
    GROUPS.append(settings.monitor + settings.group_suffix)
    return MemorySource(settings.section.topics)


def _open_producer(settings: SourceSettings[MemorySettings]) -> Producer:
    return MemoryProducer()


MEMORY = SourceKind("memory", MemorySettings, _open_source, _open_producer)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> SourceSettings[MemorySettings]:
    monkeypatch.setitem(SOURCES, "memory", MEMORY)
    LOGS.clear()
    GROUPS.clear()
    return SourceSettings("memory", MemorySettings(), "m", RedisSettings(url=SecretStr("redis://nowhere")))


def test_a_source_that_is_registered_is_opened_written_and_read(settings: SourceSettings[MemorySettings]) -> None:
    producer, source = open_producer(settings), open_source(settings)
    for value in (b"a", b"b"):
        producer.send("images", value)
    (partition,) = source.poll(0).assigned
    source.start(partition, 1)
    polled = source.poll(0)
    assert [record.value for record in polled.records[partition]] == [b"b"]
    assert polled.next_offsets == {partition: 2}


def test_a_source_that_is_registered_is_read_back_as_a_group_of_its_own(
    settings: SourceSettings[MemorySettings],
) -> None:
    producer = open_producer(settings)
    for stamp in (1000, 2000, 3000):
        producer.send("images", b"", timestamp_ms=stamp)
    assert [record.timestamp_ms for record in read_back(settings, 2000)] == [2000, 3000]
    assert [record.timestamp_ms for record in read_back(settings, 1000, 3000)] == [1000, 2000]
    assert len({*GROUPS}) == 2
    assert all(group.startswith("m-archive-") for group in GROUPS)


def test_the_configuration_has_every_kind_and_its_section() -> None:
    assert set(get_args(Config.model_fields["source"].annotation)) == set(SOURCES)
    for name, kind in SOURCES.items():
        assert Config.model_fields[kind.section].annotation is kind.settings
        assert Config().source_settings(name).section == kind.settings()
