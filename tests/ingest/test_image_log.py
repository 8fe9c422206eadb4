"""Per-image verdicts: complete, in order, filtered, and on disk or acknowledged before they count; on real brokers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from detectors.images.prepare import Prepared
from monitor.config.schema import Config
from monitor.core.aggregate import Judged
from monitor.core.buckets import Layout
from monitor.core.types import Record
from monitor.ingest.image_log import ImageLog, LineFile, open_image_log
from monitor.ingest.settings import VerdictSettings
from monitor.sources import open_producer, open_source
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.protocol import SourceError
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.e2e.running import wait_for
from tests.kafka.broker import Cluster

LAYOUT = Layout(("ood", "sharpness"), (99, 99), (False, True), (True, False), (1.0, 1.0))
NOT_LOOKED_AT: Any = Prepared  # verdicts never read pixels


def judged(i: int, p_value: float, stream: str = "cam-1") -> Judged:
    return Judged(f"images/0/{i}", stream, 1_760_000_000_000 + i, "fp", np.array([p_value, 0.5]), NOT_LOOKED_AT)


def opened(settings: Config) -> ImageLog:
    broker = settings.model_copy(update={"source": settings.verdicts.type})
    image_log = open_image_log(settings.verdicts, lambda: open_producer(broker.source_settings()))
    assert image_log is not None
    return image_log


def read_topic(settings: Config, count: int) -> list[Record]:
    """Every record of the topic that the sink writes to, read as our own source reads."""
    source = open_source(settings.source_settings())
    found: list[Record] = []

    def poll() -> bool:
        polled = source.poll(0.2)
        for partition in polled.assigned:
            source.start(partition, 0)
        for records in polled.records.values():
            found.extend(records)
        return len(found) >= count

    try:
        wait_for("the verdicts", poll, 60)
    finally:
        source.close()
    return found


def check_rows(rows: list[Mapping[str, Any]]) -> None:
    assert [row["id"] for row in rows] == ["images/0/0", "images/0/2"]
    assert rows[0] == {
        "schema": "layerwatch.verdict/1",
        "id": "images/0/0",
        "stream": "cam-1",
        "event_time": "2025-10-09T08:53:20.000Z",
        "profile": "fp",
        "ood": True,
        "p_values": {"ood": 0.01, "sharpness": 0.5},
    }
    assert rows[1]["ood"] is False


def write(sink: ImageLog, *images: Judged) -> None:
    sink.write(sink.lines(images, {"fp": LAYOUT}))


def write_three(sink: ImageLog) -> None:
    write(sink, judged(0, 0.01), judged(1, 0.7), judged(2, 0.2))
    sink.close()


def test_without_a_type_there_is_no_sink() -> None:
    assert open_image_log(VerdictSettings(), lambda: open_producer(Config().source_settings())) is None


def test_a_file_holds_what_passes_the_filter_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new-folder" / "verdicts.jsonl"
    write_three(opened(Config(verdicts=VerdictSettings(type="jsonl", target=str(path), max_p_value=0.2))))
    check_rows([json.loads(line) for line in path.read_text().splitlines()])


def test_nothing_is_in_the_file_before_it_is_flushed_and_an_incomplete_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    crashed = LineFile(path)
    crashed.send("", b'{"id":0}')
    crashed.flush()
    crashed.send("", b'{"id":1}')
    assert len(path.read_text().splitlines()) == 1
    crashed.close()
    with path.open("ab") as file:
        file.write(b'{"id":1,"str')  # the crash of a machine
    again = LineFile(path)
    again.send("", b'{"id":1}')
    again.flush()
    again.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [0, 1]


def test_a_rotated_file_is_created_again(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    sink = opened(Config(verdicts=VerdictSettings(type="jsonl", target=str(path))))
    write(sink, judged(0, 0.5))
    os.rename(path, tmp_path / "verdicts.jsonl.1")
    write(sink, judged(1, 0.5))
    sink.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["images/0/1"]


def test_a_file_that_cannot_be_written_is_an_error_that_a_retry_can_mend(tmp_path: Path) -> None:
    folder = tmp_path / "in-the-way"
    folder.write_text("a file where a folder should be")
    sink = opened(Config(verdicts=VerdictSettings(type="jsonl", target=str(folder / "verdicts.jsonl"))))
    with pytest.raises(SourceError, match="cannot write"):
        write(sink, judged(0, 0.5))
    folder.unlink()
    write(sink, judged(0, 0.5))
    sink.close()
    assert len((folder / "verdicts.jsonl").read_text().splitlines()) == 1


def test_a_redis_stream_gets_them_keyed_by_stream(redis_server: PrivateRedis) -> None:
    settings = Config(
        source="redis-stream",
        redis=RedisSettings(url=SecretStr(redis_server.url)),
        redis_stream=RedisStreamSettings(topics=("verdicts-out",)),
        verdicts=VerdictSettings(type="redis-stream", target="verdicts-out", max_p_value=0.2),
    )
    write_three(opened(settings))
    records = read_topic(settings, 2)
    check_rows([json.loads(record.value or b"") for record in records])
    assert {record.key for record in records} == {b"cam-1"}
    assert records[0].header("content-type") == b"application/json"


@pytest.mark.kafka
def test_a_kafka_topic_gets_them_also_where_images_come_from_elsewhere(kafka_broker: Cluster) -> None:
    topic = kafka_broker.create_topic("verdicts", 2)
    kafka = KafkaSettings(
        bootstrap_servers=(kafka_broker.bootstrap_servers,),
        topics=(topic,),
        group_id=topic,
        dead_letter_topic=kafka_broker.create_topic("verdicts-dead-letters"),
    )
    sink = VerdictSettings(type="kafka", target=topic, max_p_value=0.2)
    write_three(opened(Config(source="redis-stream", kafka=kafka, verdicts=sink)))
    check_rows([json.loads(record.value or b"") for record in read_topic(Config(kafka=kafka), 2)])
