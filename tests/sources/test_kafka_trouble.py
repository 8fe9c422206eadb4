"""A broker with locks on its doors, that crashes, and whose disk rots."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from monitor.core.types import Partition
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.kafka.source import KafkaSource
from monitor.sources.protocol import FatalSourceError, SourceError, UnreadableError
from tests.kafka.broker import LOGIN, Broker
from tests.sources.issuer import Issuer, login, sasl
from tests.sources.worlds import KafkaWorld, flat, follow_until, read

pytestmark = pytest.mark.kafka


@pytest.fixture
def world(breakable_broker: Broker) -> Iterator[KafkaWorld]:
    made = KafkaWorld(breakable_broker)
    yield made
    made.leave()


def through(world: KafkaWorld, address: str, **options: object) -> KafkaSettings:
    tree = world.config.kafka.model_dump() | {"bootstrap_servers": address, "request_timeout_s": 3}
    return KafkaSettings.model_validate(tree | options)


def test_the_right_password_works_and_a_wrong_one_is_fatal_at_once(breakable_broker: Broker, world: KafkaWorld) -> None:
    world.write(0, [b"x"])
    source = KafkaSource(through(world, breakable_broker.address("SASL"), sasl=LOGIN))
    world.opened.append(source)
    follow_until(source, lambda owned: len(owned) == 2)
    source.start(Partition(world.topic, 0), 0)
    assert [record.value for record in read(source, 1)] == [b"x"]
    refused = (
        (LOGIN | {"password": "wrong"}, "Invalid username or password"),
        (LOGIN | {"mechanism": "SCRAM-SHA-256"}, "UnsupportedSaslMechanism"),
    )
    for wrong, told in refused:
        began = time.monotonic()
        with pytest.raises(FatalSourceError, match=told):
            KafkaSource(through(world, breakable_broker.address("SASL"), sasl=wrong))
        assert time.monotonic() - began < 2.5  # not after the time-out


def test_the_right_authority_works_and_a_wrong_one_is_fatal_at_once(
    breakable_broker: Broker, world: KafkaWorld, certificates: Path
) -> None:
    source = KafkaSource(through(world, breakable_broker.address("TLS"), tls={"ca_file": certificates / "ca.pem"}))
    world.opened.append(source)
    follow_until(source, lambda owned: len(owned) == 2)
    for name, told in (("other.pem", "CERTIFICATE_VERIFY_FAILED"), ("missing.pem", "missing.pem")):
        began = time.monotonic()
        with pytest.raises(FatalSourceError, match=told):
            KafkaSource(through(world, breakable_broker.address("TLS"), tls={"ca_file": certificates / name}))
        assert time.monotonic() - began < 2.5


@pytest.mark.slow
@pytest.mark.parametrize("issuer", [3.0], indirect=True)
def test_reading_outlives_the_first_token(breakable_broker: Broker, world: KafkaWorld, issuer: Issuer) -> None:
    source = KafkaSource(through(world, breakable_broker.address("OAUTH"), sasl=sasl(**login(issuer))))
    world.opened.append(source)
    follow_until(source, lambda owned: len(owned) == 2)
    source.start(Partition(world.topic, 0), 0)
    deadline = time.monotonic() + 7
    sent: list[bytes] = []
    while time.monotonic() < deadline:
        sent.append(str(len(sent)).encode())
        world.write(0, [sent[-1]])
        assert [record.value for record in read(source, 1)] == sent[-1:]
        time.sleep(0.05)
    assert len(issuer.asked) >= 3  # the broker ends a connection whose token is not renewed


def test_a_client_that_the_authority_refuses_is_fatal_and_an_authority_that_is_away_is_not(
    breakable_broker: Broker, world: KafkaWorld, issuer: Issuer
) -> None:
    config = through(world, breakable_broker.address("OAUTH"), sasl=sasl(**login(issuer)))
    issuer.answers = [(401, {"error": "invalid_client"})] * 9
    with pytest.raises(FatalSourceError, match=r"refuses kafka\.sasl\.oauth\.client_id: invalid_client"):
        KafkaSource(config)
    issuer.answers = [(503, "")] * 99
    with pytest.raises(SourceError, match=r"no OAUTHBEARER token: 127.0.0.1 answered 503"):
        KafkaSource(config)


@pytest.mark.parametrize(
    ("listener", "options"), [("SASL", {}), ("PLAINTEXT", {"tls": {}}), ("TLS", {})], ids=["login", "no-tls", "tls"]
)
def test_a_door_of_another_kind_is_told_in_bounded_time(
    breakable_broker: Broker, world: KafkaWorld, listener: str, options: Mapping[str, object]
) -> None:
    config = through(world, breakable_broker.address(listener), client={"bootstrap_timeout_ms": 700}, **options)
    with pytest.raises(SourceError, match=f"connecting to {breakable_broker.address(listener)}"):
        KafkaSource(config)


@pytest.mark.story
def test_reading_goes_on_after_a_crash_of_the_broker_without_a_gap_or_a_repeat(
    breakable_broker: Broker, world: KafkaWorld
) -> None:
    world.write(0, [b"before"] * 20)
    source, partition = world.owner(), Partition(world.topic, 0)
    source.start(partition, 0)
    offsets = [record.offset for record in read(source, 20)]
    breakable_broker.kill()
    position = 20
    for _ in range(5):
        with contextlib.suppress(SourceError):  # where the client was just asking the broker for something
            assert not source.poll(0.1).records
    breakable_broker.start()
    world.write(0, [b"after"] * 20)
    deadline = time.monotonic() + 30
    while position < 40:
        assert time.monotonic() < deadline
        try:
            polled = source.poll(0.1)
        except SourceError:  # as the daemon does
            source.close()
            source = world.owner()
            source.start(partition, position)
            continue
        if partition in polled.assigned:
            source.start(partition, position)
        offsets += [record.offset for record in flat(polled)]
        position = polled.next_offsets.get(partition, position)
    assert offsets == list(range(40))


def test_a_rotten_batch_is_named_by_its_place(breakable_broker: Broker, world: KafkaWorld) -> None:
    for value in (b"a", b"b", b"c"):
        world.write(0, [value * 1000])
    breakable_broker.stop()
    segment = breakable_broker.directory / "data" / f"{world.topic}-0" / f"{0:020d}.log"
    rotten = segment.read_bytes().replace(b"b" * 1000, b"b" * 999 + b"?")
    segment.write_bytes(rotten)
    breakable_broker.start()
    source, partition = world.owner(), Partition(world.topic, 0)
    source.start(partition, 0)
    assert [record.value for record in read(source, 1)] == [b"a" * 1000]
    with pytest.raises(UnreadableError, match=f"{partition} cannot be read at 1: .*CorruptRecord") as failure:
        read(source, 1)
    assert (failure.value.partition, failure.value.next_offset) == (partition, 1)
    source.close()
    successor = world.owner()
    successor.start(partition, 2)
    assert [record.value for record in read(successor, 1)] == [b"c" * 1000]
