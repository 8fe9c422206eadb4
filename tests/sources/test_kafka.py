"""What only Kafka can do to us, on a real broker."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from kafka import KafkaProducer, TopicPartition, errors
from kafka.admin import KafkaAdminClient

from monitor.core.types import DeadLetter, Partition, Record
from monitor.sources.kafka import source as source_module
from monitor.sources.kafka.producer import KafkaRecordProducer
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.kafka.source import KafkaSource
from monitor.sources.protocol import FatalSourceError, SourceError
from tests.e2e.running import wait_for
from tests.kafka.broker import Cluster
from tests.logs import capture_log_of
from tests.sources.worlds import KafkaWorld, follow_until, read

pytestmark = pytest.mark.kafka


@pytest.fixture
def world(kafka_broker: Cluster) -> Iterator[KafkaWorld]:
    made = KafkaWorld(kafka_broker)
    yield made
    made.leave()


def letter(world: KafkaWorld, offset: int, value: bytes, headers: tuple[tuple[str, bytes], ...] = ()) -> DeadLetter:
    return DeadLetter(Record(Partition(world.topic, 0), offset, 0, b"k", value, headers), "cam", "corrupt", "no")


def changed(world: KafkaWorld, **options: object) -> KafkaSettings:
    return KafkaSettings.model_validate(world.config.kafka.model_dump() | options)


@pytest.mark.parametrize("key", ["topics", "dead_letter_topic"])
def test_a_missing_topic_is_named(world: KafkaWorld, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.sources.kafka.group.TOPIC_WAIT_S", 0.3)
    with pytest.raises(
        FatalSourceError, match=f"topic no-such-topic does not exist on .*; create it or correct kafka.{key}"
    ):
        KafkaSource(changed(world, **{key: "no-such-topic"}))


def test_an_absent_broker_is_told_in_bounded_time_and_leaves_nothing_behind() -> None:
    before = set(threading.enumerate())
    began = time.monotonic()
    config = KafkaSettings(bootstrap_servers=("localhost:1",), client={"bootstrap_timeout_ms": 400})
    with pytest.raises(SourceError, match=r"connecting to localhost:1: .*ECONNREFUSED"):
        KafkaSource(config)
    producer = KafkaRecordProducer(config)
    with pytest.raises(SourceError, match=r"connecting to localhost:1: .*ECONNREFUSED"):
        producer.send("t", b"x")
    producer.close()
    assert time.monotonic() - began < 5
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("fetch_max_byte", 1, "kafka.client.fetch_max_byte: kafka-python has no such option"),
        ("enable_auto_commit", True, "kafka.client.enable_auto_commit: cannot be changed"),
        ("fetch_max_wait_ms", "soon", "kafka.client: "),
    ],
)
def test_a_wrong_client_option_is_named(world: KafkaWorld, option: str, value: object, told: str) -> None:
    with pytest.raises(FatalSourceError, match=told):
        KafkaSource(changed(world, client={option: value}))


def test_a_letter_larger_than_the_topic_takes_keeps_its_place_without_its_value(kafka_broker: Cluster) -> None:
    world = KafkaWorld(kafka_broker, {"max.message.bytes": "20000"}, fetch_max_bytes=200_000)
    source = world.open()
    broker_refuses, client_refuses, long_headers, good = (
        letter(world, 1, b"v" * 50_000),
        letter(world, 2, b"v" * 300_000),
        letter(world, 3, b"v", (("long", b"h" * 50_000),)),
        letter(world, 4, b"good"),
    )
    source.dead_letter([broker_refuses, client_refuses, long_headers, good])
    source.dead_letter([letter(world, 5, b"later")])
    letters = {record.key: record for record in world.letters()}
    sizes = [b"50000", b"300000", b"1", None, None]
    assert len(letters) == 5
    found = [letters[f"{world.topic}:0:{i}".encode()] for i in range(1, 6)]
    assert [record.value for record in found] == [b"", b"", b"", b"good", b"later"]
    assert [record.header("layerwatch-value-omitted") for record in found] == sizes
    assert {record.header("layerwatch-reason") for record in found} == {b"corrupt"}
    world.leave()


def test_a_producer_goes_on_after_a_record_that_is_too_large(world: KafkaWorld) -> None:
    world.cluster.create_topic(f"{world.topic}.small", configs={"max.message.bytes": "20000"})
    producer = KafkaRecordProducer(world.config.kafka)
    producer.send(f"{world.topic}.small", b"v" * 50_000)
    with pytest.raises(FatalSourceError, match="larger than the topic takes"):
        producer.flush()
    producer.send(f"{world.topic}.small", b"small")
    producer.flush()
    producer.close()


def test_a_producer_goes_on_after_a_missing_topic(world: KafkaWorld) -> None:
    producer = KafkaRecordProducer(changed(world, request_timeout_s=2))
    with pytest.raises(SourceError, match="topic no-such-topic does not exist"):
        producer.send("no-such-topic", b"x")
    producer.send(world.letters_topic, b"y")
    producer.flush()
    producer.close()
    assert [record.value for record in world.letters()] == [b"y"]


def test_a_topic_deleted_under_us_is_fatal(world: KafkaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.sources.kafka.group.TOPIC_GONE_S", 0.5)
    source = world.owner()
    for partition in source.partitions():
        source.start(partition, 0)
    world.cluster.delete_topic(world.topic)
    with pytest.raises(FatalSourceError, match=f"topic {world.topic} was deleted"):
        follow_until(source, lambda owned: False)


def test_a_topic_created_anew_is_another_log(world: KafkaWorld) -> None:
    # metadata looked at often, the group seldom: the new topic shows before the old one's partitions are taken away
    world.config = world.config.model_copy(
        update={"kafka": changed(world, client={"metadata_max_age_ms": 200, "heartbeat_interval_ms": 2000})}
    )
    source = world.owner()
    former = source.log_id(Partition(world.topic, 0))
    world.cluster.delete_topic(world.topic)
    world.cluster.create_topic(world.topic, 2)
    with pytest.raises(FatalSourceError, match=f"topic {world.topic} was deleted and created again"):
        follow_until(source, lambda owned: False)
    assert world.open().log_id(Partition(world.topic, 0)) not in {"", former}


def test_aborted_records_are_passed_over_and_the_position_moves_on(world: KafkaWorld) -> None:
    writer = KafkaProducer(bootstrap_servers=world.cluster.bootstrap_servers, transactional_id=uuid.uuid4().hex)
    writer.init_transactions()
    for value, end in ((b"aborted", writer.abort_transaction), (b"kept", writer.commit_transaction)):
        writer.begin_transaction()
        writer.send(world.topic, value, partition=0)
        writer.flush()
        end()
    writer.close()
    source, partition = world.owner(), Partition(world.topic, 0)
    source.start(partition, 0)
    position, values = 0, []
    deadline = time.monotonic() + 20
    while position < 4:  # two records, two markers
        assert time.monotonic() < deadline
        polled = source.poll(0.1)
        position = polled.next_offsets.get(partition, position)
        values += [record.value for batch in polled.records.values() for record in batch]
    assert values == [b"kept"]
    assert source.bounds(partition) == (0, 4)


def test_records_removed_before_they_were_read_end_the_client(world: KafkaWorld) -> None:
    world.write(0, [b"x"] * 10)
    source, partition = world.owner(), Partition(world.topic, 0)
    admin = KafkaAdminClient(bootstrap_servers=world.cluster.bootstrap_servers)
    admin.delete_records({TopicPartition(world.topic, 0): 5})
    admin.close()
    assert source.bounds(partition) == (5, 10)
    source.start(partition, 0)
    with pytest.raises(SourceError, match="OffsetOutOfRange"):
        read(source, 1)
    with pytest.raises(SourceError, match="build a new source"):
        source.poll(0)
    source.close()
    successor = world.owner()
    successor.start(partition, 5)
    assert [record.offset for record in read(successor, 5)] == [5, 6, 7, 8, 9]


def test_a_partition_added_to_a_topic_is_assigned(world: KafkaWorld) -> None:
    world.config = world.config.model_copy(update={"kafka": changed(world, client={"metadata_max_age_ms": 200})})
    source = world.owner()
    admin = KafkaAdminClient(bootstrap_servers=world.cluster.bootstrap_servers)
    admin.create_partitions({world.topic: 3})
    admin.close()
    follow_until(source, lambda owned: Partition(world.topic, 2) in owned)
    assert len(source.partitions()) == 3


def test_a_busy_process_is_no_reason_for_a_warning(world: KafkaWorld, caplog: pytest.LogCaptureFixture) -> None:
    source = world.owner()
    for partition in source.partitions():
        source.start(partition, 0)
    source.poll(0.1)
    switch_s, end_s = sys.getswitchinterval(), time.monotonic() + 1.0
    sys.setswitchinterval(0.2)  # the client's thread, which sends a heartbeat five times a second, has to wait
    try:
        while time.monotonic() < end_s:
            pass
    finally:
        sys.setswitchinterval(switch_s)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_commit_during_a_rebalance_waits_for_the_next_without_a_word(
    world: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[object] = []
    answered = source_module._on_commit
    monkeypatch.setattr(source_module, "_on_commit", lambda *given: (answers.append(given[1]), answered(*given)))
    first = world.owner()
    assert isinstance(first, KafkaSource)
    second = world.open()

    def failed() -> bool:
        second.poll(0)
        first.poll(0.02)
        first.commit(dict.fromkeys(first.partitions(), 0))
        return any(isinstance(answer, Exception) for answer in answers)

    log = capture_log_of(source_module, monkeypatch)
    wait_for("a commit that fails", failed, 10.0)
    assert isinstance(answers[-1], errors.RebalanceInProgressError | errors.CommitFailedError)
    assert [line for line in log.entries if line["event"] != "kafka.rebalanced"] == []


def test_an_idle_poll_costs_next_to_nothing(world: KafkaWorld) -> None:
    source = world.owner()
    for partition in source.partitions():
        source.start(partition, 0)
    source.poll(0.2)
    costs = []
    for _ in range(100):
        began = time.thread_time()
        source.poll(0)
        costs.append(time.thread_time() - began)
    assert sorted(costs)[50] < 0.002
