"""What one receiver has settled, another still gets; nothing leaves before all have it; on a real Redis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from redis import Redis as Client

from monitor.store import Kept, Store, evaluation, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings

_monitors = itertools.count()


@pytest.fixture
def store(redis_server: PrivateRedis) -> Iterator[Store]:
    opened = open_store(RedisSettings(url=SecretStr(redis_server.url)), f"outbox-{next(_monitors)}")
    yield opened
    opened.close()


def documents(store: Store, receiver: str, now_ms: int = 0) -> list[str]:
    return [entry.document for entry in store.outbox.fetch(receiver, now_ms)]


def kept(store: Store) -> int:
    """Length of the stream itself."""
    return int(store._connection.read_many([("XLEN", store.outbox._outbox)])[0])


def decide(store: Store, *outbox: str) -> None:
    assert store.evaluation.decide(store.evaluation.state().version, 0, [], outbox)


def test_every_receiver_gets_every_document_in_order_and_again_until_it_settles(store: Store) -> None:
    decide(store, "a", "b")
    store.outbox.append("c")
    for receiver in ("one", "two", "one"):
        assert documents(store, receiver) == ["a", "b", "c"]


def test_a_receiver_that_comes_late_gets_what_others_have_not_settled(store: Store) -> None:
    decide(store, "a", "b")
    assert documents(store, "early") == ["a", "b"]
    assert documents(store, "late") == ["a", "b"]


def test_what_comes_while_older_ones_wait_is_listed_behind_them(store: Store) -> None:
    decide(store, "a")
    (first,) = store.outbox.fetch("one", 0)
    store.outbox.postpone("one", first.id, 1, 5_000, "alert-1")
    decide(store, "b")
    waiting, new = store.outbox.fetch("one", 4_999)
    assert (waiting.document, waiting.attempts, waiting.not_before_ms, waiting.alert_id) == ("", 1, 5_000, "alert-1")
    assert (new.document, new.attempts, new.not_before_ms, new.alert_id) == ("b", 0, 0, "")
    assert documents(store, "one", 5_000) == ["a", "b"]


def test_retry_state_belongs_to_one_receiver_and_outlives_the_connection(
    store: Store, redis_server: PrivateRedis
) -> None:
    decide(store, "a")
    (entry,) = store.outbox.fetch("one", 0)
    store.outbox.postpone("one", entry.id, 3, 7_000)
    again = open_store(RedisSettings(url=SecretStr(redis_server.url)), store._monitor_keys.key()[4:-8])
    assert [(e.attempts, e.not_before_ms) for e in again.outbox.fetch("one", 0)] == [(3, 7_000)]
    assert [(e.attempts, e.not_before_ms) for e in again.outbox.fetch("two", 0)] == [(0, 0)]
    again.close()


def test_an_entry_leaves_when_the_last_receiver_has_settled_it(store: Store) -> None:
    decide(store, "a", "b", "c")
    one, two = store.outbox.fetch("one", 0), store.outbox.fetch("two", 0)
    assert store.outbox.settle("one", one[0].id)
    assert store.outbox.settle("one", one[2].id)
    assert documents(store, "one") == ["b"]
    assert kept(store) == 3
    assert store.outbox.settle("two", two[0].id)
    assert kept(store) == 2
    for entry in two[1:]:
        store.outbox.settle("two", entry.id)
    assert kept(store) == 2  # b is still open for one
    store.outbox.settle("one", one[1].id)
    assert kept(store) == 0


def test_an_entry_that_a_receiver_never_fetched_is_kept_for_it(store: Store) -> None:
    store.outbox.fetch("slow", 0)
    decide(store, "a")
    (entry,) = store.outbox.fetch("fast", 0)
    store.outbox.settle("fast", entry.id)
    assert documents(store, "slow") == ["a"]


def test_settling_again_says_so_and_leaves_what_is_held(store: Store) -> None:
    decide(store, "fires", "resolves")
    fires, resolves = store.outbox.fetch("one", 0)
    assert store.outbox.settle("one", fires.id, "alert-1", "fires")
    assert store.outbox.held("one") == {"alert-1": "fires"}
    assert store.outbox.settle("one", resolves.id, "alert-1")
    assert not store.outbox.settle("one", fires.id, "alert-1", "fires")
    assert store.outbox.held("one") == {}


def test_held_alerts_can_be_changed_and_dropped(store: Store) -> None:
    store.outbox.hold("one", "alert-1", "x")
    assert (store.outbox.held("one"), store.outbox.held("two")) == ({"alert-1": "x"}, {})
    store.outbox.drop_held("one", "alert-1")
    assert store.outbox.held("one") == {}


def test_a_buried_entry_is_a_dead_letter_once_and_holds_nothing(store: Store) -> None:
    decide(store, "a")
    store.outbox.hold("one", "alert-1", "a")
    (entry,) = store.outbox.fetch("one", 0)
    store.outbox.postpone("one", entry.id, 9, 1)
    assert store.outbox.bury("one", entry, "answered 500", "alert-1")
    assert not store.outbox.bury("one", entry, "answered 500", "alert-1")
    (dead,) = store.outbox.dead_alerts()
    assert (dead.receiver, dead.entry_id, dead.reason, dead.document) == ("one", entry.id, "answered 500", "a")
    assert store.outbox.held("one") == {}
    assert store.outbox.fetch("one", 10) == []


def test_the_newest_dead_letters_come_first(store: Store) -> None:
    decide(store, "a", "b")
    for entry in store.outbox.fetch("one", 0):
        store.outbox.bury("one", entry, "gone")
    assert [dead.document for dead in store.outbox.dead_alerts(limit=1)] == ["b"]


def test_the_backlog_counts_what_waits_and_what_was_never_fetched(store: Store) -> None:
    assert store.outbox.backlog("one").entries == 0
    decide(store, "a")
    (entry,) = store.outbox.fetch("one", 0)
    decide(store, "b", "c")
    oldest_ms = int(entry.id.partition("-")[0])
    assert (store.outbox.backlog("one").entries, store.outbox.backlog("one").oldest_ms) == (3, oldest_ms)
    assert store.outbox.backlog("never fetched").entries == 3
    for left in store.outbox.fetch("one", 0):
        store.outbox.settle("one", left.id)
    assert (store.outbox.backlog("one").entries, store.outbox.backlog("one").oldest_ms) == (0, None)


def test_counting_a_full_outbox_holds_the_server_for_a_moment_at_a_time(
    store: Store, redis_server: PrivateRedis
) -> None:
    key, limit = store.outbox._outbox, evaluation.OUTBOX_LIMIT
    document = "x" * 4_000  # as long as real ones
    store._connection.read_many([("XADD", key, f"1-{i}", "document", document) for i in range(1, limit + 1)])
    store.outbox.fetch("one", 0)
    with Client.from_url(redis_server.url) as client:
        client.config_set("slowlog-log-slower-than", 200_000)
        client.slowlog_reset()
        assert store.outbox.backlog("one").entries == store.outbox.backlog("never fetched").entries == limit
        assert client.slowlog_len() == 0
        client.delete(key)


def test_a_receiver_is_new_once_and_is_kept_until_it_is_forgotten(store: Store) -> None:
    assert store.outbox.receivers() == set()
    assert store.outbox.keep_receivers(["one", "gone"]) == ["gone", "one"]
    assert store.outbox.keep_receivers(["one"]) == []
    assert store.outbox.receivers() == {"one", "gone"}
    store.outbox.forget_receiver("gone")
    assert store.outbox.receivers() == {"one"}
    assert store.outbox.keep_receivers(["gone"]) == ["gone"]


def test_what_waited_for_a_forgotten_receiver_is_buried_and_holds_nothing_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.store.outbox.FETCH_ENTRIES", 2)
    monkeypatch.setattr(evaluation, "OUTBOX_LIMIT", 3)
    store.outbox.keep_receivers(["one", "gone"])
    decide(store, "a", "b")
    store.outbox.fetch("gone", 0)
    decide(store, "c", "d", "e")  # a and b are cut off
    store.outbox.hold("gone", "alert-1", "a")
    for _ in range(3):
        for entry in store.outbox.fetch("one", 0):
            store.outbox.settle("one", entry.id)
    assert kept(store) == 3
    assert store.outbox.bury_all("gone", "no longer configured") == 3
    store.outbox.forget_receiver("gone")
    dead = {(letter.receiver, letter.reason, letter.document) for letter in store.outbox.dead_alerts()}
    assert dead == {("gone", "no longer configured", text) for text in "cde"}
    assert store.outbox.held("gone") == {}
    assert kept(store) == 0


def test_absence_adds_up_until_the_receiver_is_configured_again(store: Store) -> None:
    store.outbox.keep_receivers(["one", "gone"])
    assert store.outbox.add_absence("gone", 60) == 60
    assert store.outbox.add_absence("gone", 0.5) == 60.5
    store.outbox.keep_receivers(["gone"])
    assert store.outbox.add_absence("gone", 1) == 1


def test_what_one_settles_is_kept_for_a_receiver_that_is_configured_and_has_not_looked_yet(store: Store) -> None:
    store.outbox.keep_receivers(["quick", "late"])
    decide(store, "a")
    (entry,) = store.outbox.fetch("quick", 0)
    store.outbox.settle("quick", entry.id)
    assert documents(store, "late") == ["a"]


def test_beyond_its_limit_the_outbox_drops_the_oldest_and_counts_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "OUTBOX_LIMIT", 3)
    decide(store, "a", "b", "c")
    entries = store.outbox.fetch("dead", 0)
    store.outbox.postpone("dead", entries[0].id, 1, 1)
    decide(store, "d", "e")
    assert store.evaluation.state().outbox_dropped == 2
    assert documents(store, "dead", 10) == ["c", "d", "e"]
    assert store.outbox.backlog("dead").entries == 3
    assert store._monitor_keys.texts("outbox", "retry", "dead").all() == {}


def test_a_full_fetch_gives_the_oldest_first_and_goes_on_behind_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.store.outbox.FETCH_ENTRIES", 2)
    decide(store, "a", "b", "c")
    entries = store.outbox.fetch("one", 0)
    assert [e.document for e in entries] == ["a", "b"]
    assert documents(store, "one") == ["a", "b"]
    store.outbox.settle("one", entries[0].id)
    assert documents(store, "one") == ["b", "c"]


def test_who_is_failing_is_remembered_until_it_is_not(store: Store) -> None:
    assert store.outbox.raise_failing("one", "told")
    assert not store.outbox.raise_failing("one", "told by another shard")
    assert store.outbox.failing() == {"one": "told"}
    assert store.outbox.end_failing("one", "told", "over")
    assert not store.outbox.end_failing("one", "told", "over")
    assert store.outbox.failing() == {}
    assert documents(store, "two") == ["told", "over"]


def test_every_key_of_the_outbox_expires_by_itself(store: Store, redis_server: PrivateRedis) -> None:
    store.outbox.fetch("early", 0)  # creates the stream
    store.outbox.append("a")
    store.outbox.append("b")
    first, second = store.outbox.fetch("one", 0)
    store.outbox.settle("one", first.id, "alert-1", "a")
    store.outbox.postpone("one", second.id, 1, 1)
    store.outbox.bury("early", store.outbox.fetch("early", 0)[0], "gone")
    store.outbox.raise_failing("early", "told")
    store.outbox.keep_receivers(["early"])
    assert store.evaluation.decide(0, 0, [], [], Kept({"alert-1": "a"}))
    with Client.from_url(redis_server.url, decode_responses=True) as client:
        keys = set(client.scan_iter(f"{store._monitor_keys.key()}:*"))
        assert len(keys) == 8
        assert all(client.ttl(key) > 0 for key in keys)
