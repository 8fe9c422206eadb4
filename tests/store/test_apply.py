"""Cursor and counts move together, whatever is repeated, lost or taken over; on a real Redis."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import astuple, replace

import numpy as np
import pytest
from pydantic import SecretStr

from monitor.core.buckets import Layout
from monitor.core.types import Alert, AlertPhase, ApplyStatus, Delta, Exemplar, Partition, StreamFacts, Totals
from monitor.store import GONE_STREAM, OTHER_STREAM, ClaimStatus, Limits, Store, StoreConfigError, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings

P = Partition("images", 0)
VECTOR = np.array([*range(9), 36, 2, 0, 1, 0, 3], dtype=np.uint32)  # one signal; 36 images, 2 rejected, longest run 3
DELTA = Delta(P, "a", 10, 20, 5_000, {("fp", 0, "cam-1"): VECTOR})


@pytest.fixture
def store() -> Iterator[Store]:
    with PrivateRedis() as server:
        opened = open_store(RedisSettings(url=SecretStr(server.url)), "test")
        yield opened
        opened.close()


def begin(store: Store) -> None:
    assert store.partitions.claim(P, 1, "a").status is ClaimStatus.LOST
    assert store.partitions.start(P, 1, "a", 10).status is ClaimStatus.OK


def test_a_batch_counts_once_however_often_it_is_applied(store: Store) -> None:
    begin(store)
    assert [store.partitions.apply([DELTA])[0].status for _ in range(3)] == [
        ApplyStatus.OK,
        ApplyStatus.DUP,
        ApplyStatus.DUP,
    ]
    cursor = store.partitions.cursors([P])[P]
    assert cursor is not None
    assert (cursor.next_offset, cursor.high_ms) == (20, 5_000)
    np.testing.assert_array_equal(store.counts.buckets([P], "fp", 0, 1)[0]["cam-1"], VECTOR)
    totals = store.counts.totals([P])["cam-1"]
    assert (totals.applied, totals.rejected, totals.duplicates) == (36, 2, 1)


def test_totals_of_before_changes_were_counted_go_on(store: Store) -> None:
    begin(store)
    key = "{lw:test:images:0}:totals"
    store._connection.client.hset(key, "cam-1", struct.pack("<4Q", 100, 20, 3, 4))
    assert store.counts.totals([P])["cam-1"] == Totals(100, 20, 3, 4, 0)
    changed = VECTOR.copy()
    changed[-2] = 5
    store.partitions.apply([replace(DELTA, vectors={("fp", 0, "cam-1"): changed})])
    assert store.counts.totals([P])["cam-1"] == Totals(136, 22, 3, 5, 5)


def test_a_redis_that_lost_its_last_writes_says_where_it_stands(store: Store) -> None:
    begin(store)
    outcome = store.partitions.apply([replace(DELTA, expect=15, next_offset=25)])[0]
    assert (outcome.status, outcome.next_offset) == (ApplyStatus.REWIND, 10)
    assert store.counts.totals([P]) == {}


def test_a_former_owner_is_fenced_and_an_empty_redis_is_noticed(store: Store) -> None:
    assert store.partitions.apply([DELTA])[0].status is ApplyStatus.LOST
    begin(store)
    assert store.partitions.claim(P, 2, "b").status is ClaimStatus.OK
    assert store.partitions.apply([DELTA])[0].status is ApplyStatus.FENCED
    assert store.counts.totals([P]) == {}


def test_what_comes_for_a_sealed_bucket_counts_late_in_the_next_one(store: Store) -> None:
    begin(store)
    store.partitions.apply([DELTA])
    sealed = store.counts.tables(store.partitions.seal([P], 0))
    store.partitions.apply([replace(DELTA, expect=20, next_offset=30)])
    again = store.counts.tables(store.partitions.seal([P], 0))
    np.testing.assert_array_equal(again["fp"]["cam-1"], sealed["fp"]["cam-1"])
    late = store.counts.buckets([P], "fp", 10_000, 10_001)[10_000]["cam-1"]
    assert (int(late[-6]), int(late[-4])) == (36, 36)


def test_the_sample_of_a_stream_keeps_the_highest_scores(store: Store) -> None:
    begin(store)
    images = [Exemplar(f"images/0/{i}", "cam-1", 1000 * i, 0, 0.5, (0.5,), b"jpeg", "fp") for i in range(30)]
    scored = [(float(i * 7 % 30), image) for i, image in enumerate(images)]
    store.partitions.apply([replace(DELTA, sample=scored[:20])])
    store.partitions.apply([replace(DELTA, expect=20, next_offset=30, sample=scored[20:])])
    best = [image for _, image in sorted(scored, key=lambda pair: pair[0])[-24:]]
    all_times = (0, 2**53)
    found = store.exemplars.sample([P], "fp", "cam-1", all_times)
    assert found == sorted(best, key=lambda image: -image.event_time_ms)
    last_ms = images[-1].event_time_ms
    assert store.exemplars.sample([P], "fp", "cam-1", (last_ms - 4000, last_ms)) == [
        image for image in found if last_ms - 4000 <= image.event_time_ms < last_ms
    ]
    assert store.exemplars.sample([P], "other", "cam-1", all_times) == []


def test_the_latest_typical_images_of_a_stream_are_kept_once(store: Store) -> None:
    begin(store)
    kept = [Exemplar(f"images/0/{i}", "cam-1", 1000 * i, 0, 0.5, (0.5,), b"jpeg", "fp") for i in range(30)]
    late = Exemplar("images/0/40", "cam-1", 7_500, 0, 0.5, (0.5,), b"jpeg", "fp")
    store.partitions.apply([replace(DELTA, typical=kept)])
    store.partitions.apply([replace(DELTA, expect=20, next_offset=30, typical=[*kept[20:], late])])
    assert store.exemplars.typical([P], "fp", "cam-1") == [*kept[:7:-1], late, kept[7]]
    assert store.exemplars.typical([P], "other", "cam-1") == store.exemplars.typical([P], "fp", "cam-2") == []


def test_counts_of_another_length_are_refused_by_name_and_change_nothing(store: Store) -> None:
    begin(store)
    store.partitions.apply([DELTA])
    longer = replace(DELTA, expect=20, next_offset=30, vectors={("fp", 0, "cam-1"): np.append(VECTOR, VECTOR[-9:])})
    with pytest.raises(
        StoreConfigError, match=r"images:0}:b:fp:0 holds vectors of 60 bytes.* have 96.*fit the profile"
    ):
        store.partitions.apply([longer])
    assert store.partitions.apply([replace(DELTA, expect=20, next_offset=30)])[0].status is ApplyStatus.OK
    assert store.counts.totals([P])["cam-1"].applied == 72


def test_partitions_whose_counts_have_other_lengths_are_refused_by_name(store: Store) -> None:
    begin(store)
    other = Partition("images", 1)
    store.partitions.start(other, 1, "a", 10)
    longer = {("fp", 0, "cam-1"): np.append(VECTOR, VECTOR[-9:])}
    store.partitions.apply([DELTA, replace(DELTA, partition=other, vectors=longer)])
    with pytest.raises(StoreConfigError, match=r"counts of cam-1 with 15 and 24 entries.*fit the profile"):
        store.counts.buckets([P, other], "fp", 0, 1)


def test_a_layout_that_the_counts_of_its_fingerprint_cannot_be_added_to_is_refused(store: Store) -> None:
    layout = Layout(("ood",), (500,), (False,), (True,), (1.0,))
    store.catalog.put_layouts({"fp": layout})
    again = replace(layout, dependence=(2.0,))
    store.catalog.put_layouts({"fp": again})
    wider = Layout(("ood", "mean"), (500, 500), (False, True), (True, False), (1.0, 1.0))
    finer = replace(layout, levels=(0.5, 0.1))
    for other, text in ((wider, "signals ood; here: ood, mean"), (finer, r"levels 0.5, 0.2, .*; here: 0.5, 0.1")):
        with pytest.raises(StoreConfigError, match=f"profile fp has counts of another layout .{text}"):
            store.catalog.put_layouts({"new": other, "fp": other})
    assert store.catalog.layouts() == {"fp": again}


def test_a_new_owner_finds_every_fact_of_a_stream(store: Store) -> None:
    begin(store)
    facts = StreamFacts(b"digest", 3, "640x480/RGB", 4_000, 5_000, 6, 7_000)
    assert all(astuple(facts))
    store.partitions.apply([replace(DELTA, facts={"cam-1": facts})])
    assert store.partitions.facts(P) == {"cam-1": facts}


ALERT = Alert("drift", "cam-1", AlertPhase.PENDING, "a1", since_ms=10_000)


def test_of_two_evaluators_only_one_decides(store: Store) -> None:
    version = store.evaluation.state().version
    assert store.evaluation.decide(version, 0, [ALERT], ["{}"])
    assert not store.evaluation.decide(version, 0, [Alert("drift", "cam-1")], [])
    assert store.evaluation.alerts() == {("drift", "cam-1"): ALERT}


def test_rejections_are_counted_by_reason_and_streams_beyond_the_limit_together(redis_server: PrivateRedis) -> None:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "reasons", Limits(max_streams=1))
    begin(store)
    vectors = {("fp", 0, "cam-1"): VECTOR, ("fp", 0, "cam-2"): VECTOR}
    reasons = {("cam-1", "format"): 2, ("cam-2", "truncated"): 1}
    for _ in range(2):
        store.partitions.apply([replace(DELTA, vectors=vectors, reasons=reasons)])
    assert store.counts.rejected_reasons([P]) == {"cam-1": {"format": 2}, OTHER_STREAM: {"truncated": 1}}
    assert store.counts.streams_over_limit([P]) == 38
    store.close()


HOUR_MS = 3_600_000


def test_dead_streams_make_room_for_new_ones_and_stay_in_the_sums(redis_server: PrivateRedis) -> None:
    limits = Limits(max_streams=2, retention_s=3600)
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "dead", limits)
    begin(store)

    def count(stream: str, expect: int, seen_ms: int) -> None:
        vectors, reasons = {("fp", 0, stream): VECTOR}, {(stream, "format"): 2}
        facts = {stream: StreamFacts(b"digest", seen_ms=seen_ms)}
        delta = Delta(P, "a", expect, expect + 10, 5_000, vectors, facts, reasons=reasons)
        assert store.partitions.apply([delta])[0].status is ApplyStatus.OK

    def sums() -> tuple[Totals, int]:
        reasons = store.counts.rejected_reasons([P]).values()
        return sum(store.counts.totals([P]).values(), Totals()), sum(sum(found.values()) for found in reasons)

    count("dead", 10, 1)
    count("alive", 20, 1)
    count("late", 30, HOUR_MS)  # beyond the limit
    assert store.partitions.dead([P], HOUR_MS + 1) == {}
    found = store.partitions.dead([P], HOUR_MS + 2)
    assert found.keys() == {"dead", "alive"}
    count("alive", 40, HOUR_MS)  # it comes back before it is forgotten
    before = sums()
    for _ in range(2):  # the first reply may be lost
        store.partitions.forget(found)
        assert set(store.counts.totals([P])) == {GONE_STREAM, OTHER_STREAM, "alive"}
        assert set(store.partitions.facts(P)) == {"alive"}
        assert sums() == before
    assert store.counts.rejected_reasons([P])[GONE_STREAM] == {"format": 2}
    count("late", 50, HOUR_MS + 2)
    count("later", 60, HOUR_MS + 2)
    totals = store.counts.totals([P])
    assert {name: total.applied for name, total in totals.items()} == {
        GONE_STREAM: 36,
        OTHER_STREAM: 72,
        "alive": 72,
        "late": 36,
    }
    assert store.counts.streams_over_limit([P]) == 76
    store.close()


def test_a_stream_that_another_partition_still_gets_is_not_dead(store: Store) -> None:
    begin(store)
    other = Partition("images", 1)
    store.partitions.start(other, 1, "a", 10)
    facts = [StreamFacts(b"digest", seen_ms=seen_ms) for seen_ms in (1, 10**12)]
    deltas = [replace(DELTA, facts={"cam-1": facts[0]}), replace(DELTA, partition=other, facts={"cam-1": facts[1]})]
    store.partitions.apply(deltas)
    assert store.partitions.dead([P, other], 10**12) == {}
    assert store.partitions.dead([P], 10**12).keys() == {"cam-1"}


def test_what_a_forgotten_stream_has_in_a_bucket_that_is_folded_goes_to_those_that_are_gone(store: Store) -> None:
    begin(store)
    store.partitions.apply([replace(DELTA, facts={"cam-1": StreamFacts(b"digest", seen_ms=1)})])
    store.partitions.forget(store.partitions.dead([P], 10**12))
    store.partitions.seal([P], 10_000)
    assert store.counts.totals([P]) == {GONE_STREAM: Totals(36, 2, 36, 1, 0)}
