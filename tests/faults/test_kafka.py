"""Brokers that restart or vanish, groups in turmoil, and topics that change under the reader."""

from __future__ import annotations

import signal
import struct
import time
from collections.abc import Callable, Sequence

import pytest
from crc32c import crc32c
from kafka import TopicPartition
from kafka.admin import NewPartitions

from monitor.core.types import Partition, Record
from tests.faults.rig import STORY, Daemon, Rig, bounds, normal, wait_for
from tests.kafka.broker import LOGIN, Broker

pytestmark = pytest.mark.kafka
MakeRig = Callable[..., Rig]
HALF = STORY // 2


def begun(rig: Rig) -> Daemon:
    rig.tell(0, HALF)
    daemon = rig.start()
    rig.await_counted()
    return daemon


def finish(rig: Rig) -> None:
    rig.tell(HALF, STORY)
    rig.check_story()


def outage(rig: Rig, broker: Broker, seconds: float) -> None:
    daemon = begun(rig)
    broker.kill()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert not daemon.ended()
        time.sleep(0.2)
    broker.start()
    rig.renew_producer()
    finish(rig)
    assert not daemon.ended()


@pytest.mark.faults
def test_a_broker_that_crashes_and_comes_back(make_rig: MakeRig, breakable_broker: Broker) -> None:
    outage(make_rig(cluster=breakable_broker), breakable_broker, 0)


@pytest.mark.faults
def test_all_brokers_down_for_a_minute(make_rig: MakeRig, breakable_broker: Broker) -> None:
    outage(make_rig(cluster=breakable_broker), breakable_broker, 60)


@pytest.mark.faults
def test_a_zombie_that_wakes_after_its_session_has_ended_is_fenced_and_rejoins(rig: Rig) -> None:
    rig.tell(0, HALF)
    replicas = [rig.start(), rig.start()]
    wait_for("a partition each", lambda: all(len(d.events("partition.taken")) >= 1 for d in replicas))
    rig.await_counted()
    # one that holds a batch of images in its hands, not yet applied
    rig.tell(HALF, HALF + 40)
    replicas[0].send(signal.SIGSTOP)
    rig.await_counted()
    taken = len(replicas[0].events("partition.taken"))
    replicas[0].send(signal.SIGCONT)
    rig.tell(HALF + 40, STORY)
    rig.check_story()
    wait_for("the zombie to be a member again", lambda: len(replicas[0].events("partition.taken")) > taken)
    assert not any(d.ended() for d in replicas)


@pytest.mark.faults
def test_a_storm_of_rebalances(make_rig: MakeRig) -> None:
    rig = make_rig(partitions=4)
    rig.start()
    for step in range(8):
        rig.tell(25 * step, 25 * (step + 1))
        guest = rig.start()
        wait_for("the guest to own something", lambda d=guest: d.ended() or d.events("partition.taken"))  # type: ignore[misc]
        if step % 2:
            guest.kill()
        else:
            assert guest.terminate() == 0
    rig.await_counted()
    rig.await_story_closed()
    rig.check_counts()
    rig.check_alerts()


def flip(batch: bytearray) -> None:
    """One bit in the middle: the checksum tells."""
    batch[len(batch) // 2] ^= 1


def recode(batch: bytearray) -> None:
    """A compression that no client knows, under a right checksum."""
    batch[22] |= 7  # the attributes' low bits
    batch[17:21] = crc32c(bytes(batch[21:])).to_bytes(4, "big")


def rotten_log(
    rig: Rig, broker: Broker, batches: Sequence[range], rot: Callable[[bytearray], None] = flip
) -> list[Record]:
    """Spoil these batches of partition 0; returns the log as it was, those without values."""
    log = rig.log_of(0)
    broker.stop()
    segment = broker.directory / "data" / f"{rig.topic}-0" / f"{0:020d}.log"
    whole, at, firsts = segment.read_bytes(), 0, []
    parts = []
    while at < len(whole):  # base offset, length of what follows it, the rest
        first, length = struct.unpack_from(">qi", whole, at)
        parts.append(bytearray(whole[at : at + 12 + length]))
        firsts.append(first)
        at += 12 + length
    for batch in batches:
        rot(parts[firsts.index(batch[0])])
    segment.write_bytes(b"".join(parts))
    broker.start()
    rig.renew_producer()
    gone = {offset for batch in batches for offset in batch}
    high, spoilt = 0, []
    for record in log:
        if record.offset in gone:
            # what nobody can read counts at the highest time before it, in the stream for the nameless
            spoilt.append(Record(record.partition, record.offset, high, None, None))
        else:
            high = max(high, record.timestamp_ms)
            spoilt.append(record)
    return spoilt


def in_batches(rig: Rig, sizes: Sequence[int]) -> list[range]:
    """Batches of unique pictures in partition 0, as one record batch each; returns their offsets."""
    found, begin = [], 0
    for size in sizes:
        values = [normal()[i % 80] + b"#%d" % i for i in range(begin, begin + size)]
        rig.write(0, values, [rig.start_ms + i * 1000 for i in range(begin, begin + size)])
        found.append(range(begin, begin + size))
        begin += size
    return found


@pytest.mark.faults
@pytest.mark.parametrize("rot", [flip, recode])
def test_a_corrupt_batch_becomes_dead_letters_and_its_neighbours_count(
    make_rig: MakeRig, breakable_broker: Broker, rot: Callable[[bytearray], None]
) -> None:
    rig = make_rig(cluster=breakable_broker, partitions=1, linger_ms=500)
    batches = in_batches(rig, [20, 13, 20, 1, 7, 20])
    log = rotten_log(rig, breakable_broker, [batches[1], batches[3], batches[4]], rot)
    daemon = rig.start()
    rig.await_counted()
    rig.check_counts(logs=[log])
    assert {d["data"]["stream"] for d in rig.hook.own("layerwatch-unreadable")} <= {f"{rig.topic}:0"}
    wait_for("the alert", lambda: rig.hook.own("layerwatch-unreadable"))
    unreadable = [letter for letter in rig.letters() if dict(letter.headers)["layerwatch-reason"] == b"unreadable"]
    assert len(unreadable) == 13 + 1 + 7
    assert not daemon.ended()


@pytest.mark.faults
def test_a_corrupt_batch_stops_the_partition_by_policy_and_the_other_goes_on(
    make_rig: MakeRig, breakable_broker: Broker
) -> None:
    settings = {"dead_letters": {"on_unreadable": "stop"}}
    rig = make_rig(cluster=breakable_broker, partitions=2, linger_ms=500, settings=settings)
    batches = in_batches(rig, [20, 13, 20])
    rotten_log(rig, breakable_broker, [batches[1]])
    rig.write(1, normal()[:40], [rig.start_ms + i * 1000 for i in range(40)])
    daemon = rig.start()
    rig.await_counted(20 + 40)
    wait_for("the alert", lambda: rig.hook.own("layerwatch-unreadable"))
    assert [rig.stands(0), rig.stands(1)] == [20, 40]
    assert "cannot be read" in daemon.ready()[1]


@pytest.mark.faults
def test_records_that_retention_took_unread_are_a_gap_that_is_counted_and_told(rig: Rig) -> None:
    daemon = begun(rig)
    assert daemon.terminate() == 0
    before = rig.log_of(0)
    rig.tell(HALF, HALF + 40)
    with rig.cluster._admin() as admin:
        admin.delete_records({TopicPartition(rig.topic, 0): HALF + 15})
    rig.produced[0] -= 15
    second = rig.start()
    rig.await_counted()
    finish_logs = [[*before, *rig.log_of(0)], rig.log_of(1)]
    rig.check_counts(logs=finish_logs)
    told = wait_for("the alert", lambda: rig.hook.own("layerwatch-gap"))
    assert told[0]["data"]["summary"].startswith(f"{rig.topic}:0: retention removed 15 records unread")
    wait_for("its end", lambda: len(rig.hook.own("layerwatch-gap")) == 2)  # told once, and over once it has caught up
    assert not second.ended()


@pytest.mark.faults
def test_a_gap_stops_the_partition_by_policy_and_the_other_goes_on(make_rig: MakeRig) -> None:
    rig = make_rig(settings={"dead_letters": {"on_gap": "stop"}})
    assert begun(rig).terminate() == 0
    rig.tell(HALF, HALF + 40)
    with rig.cluster._admin() as admin:
        admin.delete_records({TopicPartition(rig.topic, 0): HALF + 15})
    rig.start()
    rig.await_counted(2 * HALF + 40)
    wait_for("the alert", lambda: rig.hook.own("layerwatch-gap"))
    assert [rig.stands(0), rig.stands(1)] == [HALF, HALF + 40]


def test_a_missing_topic_ends_the_daemon_with_one_line_that_names_it(rig: Rig) -> None:
    rig.cluster.delete_topic(rig.topic)
    daemon = rig.start()
    assert daemon.status == 69
    (line,) = [line for line in daemon.log.read_text().splitlines() if line.startswith("layerwatch run: ")]
    assert f"topic {rig.topic} does not exist" in line


def test_a_topic_that_is_deleted_and_created_anew_is_told_and_not_read(rig: Rig) -> None:
    daemon = begun(rig)
    rig.cluster.delete_topic(rig.topic)
    rig.cluster.create_topic(rig.topic, 2)
    assert daemon.status == 69
    (told,) = wait_for("the alert", lambda: rig.hook.own("layerwatch-topic"))
    assert "deleted" in told["data"]["summary"]
    counted = rig.counted()
    rig.renew_producer()
    rig.tell(HALF, STORY)
    second = rig.start()
    wait_for("it to stop", lambda: len(second.events("own.alert")) >= 2)
    assert "created again" in second.ready()[1]
    assert not second.ended()
    assert rig.counted() == counted


@pytest.mark.faults
def test_a_partition_without_cursor_and_commit_begins_where_the_policy_says(make_rig: MakeRig) -> None:
    rig = make_rig(settings={"kafka": {"start": "latest"}})
    rig.tell(0, HALF)
    daemon = rig.start()
    wait_for("its partitions", lambda: len(daemon.events("partition.taken")) == 2)
    rig.tell(HALF, HALF + 40)
    rig.await_counted(80)
    rig.check_counts(logs=[rig.log_of(i)[HALF:] for i in (0, 1)])


@pytest.mark.faults
def test_partitions_that_are_added_are_read_from_their_start(rig: Rig) -> None:
    daemon = begun(rig)
    with rig.cluster._admin() as admin:
        admin.create_partitions({rig.topic: NewPartitions(3)})
    rig.partitions.append(Partition(rig.topic, 2))
    rig.produced.append(0)
    rig.renew_producer()
    # before the reader knows of it; of the time that comes, because the buckets before it are closed
    rig.write(2, (2 * normal())[:HALF], [rig.start_ms + (HALF + 10 + i) * 1000 for i in range(HALF)])
    rig.await_counted()
    finish(rig)
    assert not daemon.ended()


@pytest.mark.faults
def test_wrong_credentials_end_the_daemon_and_right_ones_let_it_count(
    make_rig: MakeRig, breakable_broker: Broker
) -> None:
    rig = make_rig(cluster=breakable_broker)
    rig.settings["kafka"] |= {
        "bootstrap_servers": [breakable_broker.address("SASL")],
        "sasl": LOGIN | {"password": "no"},
    }
    refused = rig.start()
    assert refused.status == 69
    assert "Invalid username or password" in refused.log.read_text()
    rig.settings["kafka"]["sasl"] = LOGIN
    begun(rig)
    finish(rig)


@pytest.mark.faults
def test_dead_letters_that_cannot_be_written_hold_the_cursor_and_are_told(rig: Rig) -> None:
    daemon = begun(rig)
    letters = rig.letters()
    rig.cluster.delete_topic(rig.letters_topic)
    rig.tell(HALF, HALF + 40)
    wait_for("the alert", lambda: rig.hook.own("layerwatch-dead-letters"))
    stands = {p: c.next_offset for p, c in rig.store.partitions.cursors(rig.partitions).items() if c}
    ends = {p: end for p, (_, end) in bounds(rig.cluster, rig.partitions).items()}
    assert all(stands[p] < ends[p] for p in rig.partitions)
    assert len(daemon.events("source.failed")) == 0  # nothing is read, decoded or scored again
    rig.cluster.create_topic(rig.letters_topic)
    rig.await_counted()
    wait_for("the end of the alert", lambda: len(rig.hook.own("layerwatch-dead-letters")) == 2)
    written = {letter.key for letter in (*letters, *rig.letters())}
    rig.tell(HALF + 40, STORY)
    rig.await_counted()
    rig.await_story_closed()
    rig.check_counts(earlier_letters=letters)
    assert len(written) == len(letters) + 2
    assert len(rig.check_alerts()) == 2
