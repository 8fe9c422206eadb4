"""Every script touches the keys that its caller declares and no others (conftest.py has Redis refuse those)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from monitor.core.feedback import About, Feedback
from monitor.core.types import Applied, ApplyStatus, Delta, Exemplar, Partition, StreamFacts
from monitor.sources.redis_streams.log import SCRIPTS as LOG_SCRIPTS
from monitor.sources.redis_streams.log import append_call
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.sources.redis_streams.source import RedisStreamSource
from monitor.store import GONE_STREAM, OTHER_STREAM, ClaimStatus, Limits, Sealed, Store, StoreError, open_store
from monitor.store.checkpoints import Kept
from monitor.store.connection import KEY_ROUNDS, SCRIPTS, Call, Connection, Script
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.store.shards import shard_of

P = Partition("images", 0)
BUCKET_MS = Limits().bucket_ms
VECTOR = np.array([*range(9), 36, 2, 0, 1, 0, 3], dtype=np.uint32)  # one signal; 36 images


def script_of(text: str) -> Script:
    return Script("test", text, hashlib.sha1(text.encode()).hexdigest())


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    """One of its own, so that its statistics and keys are those of the test."""
    with PrivateRedis() as started:
        yield started


@pytest.fixture
def store(server: PrivateRedis) -> Iterator[Store]:
    opened = opened_on(server)
    assert opened.partitions.claim(P, 1, "a").status is ClaimStatus.LOST
    assert opened.partitions.start(P, 1, "a", 0).status is ClaimStatus.OK
    yield opened
    opened.close()


def opened_on(server: PrivateRedis) -> Store:
    return open_store(RedisSettings(url=SecretStr(server.url)), "keys", Limits(max_streams=2))


def delta(offset: int, bucket_ms: int, *streams: str) -> Delta:
    """Counts of the streams in one bucket, each with facts, a rejection, an unusual and a typical image."""
    images = [Exemplar(f"{offset}-{s}", s, bucket_ms + 1, bucket_ms, 0.5, (0.5,), b"jpeg", "fp") for s in streams]
    return Delta(
        P,
        "a",
        offset,
        offset + 1,
        bucket_ms + 1,
        {("fp", bucket_ms, stream): VECTOR for stream in streams},
        {stream: StreamFacts(b"digest", seen_ms=1) for stream in streams},
        exemplars=images,
        typical=images,
        reasons={(stream, "format"): 2 for stream in streams},
        worst={("fp", bucket_ms, image.stream): [image] for image in images},
    )


def applied(store: Store, *deltas: Delta) -> None:
    for made in deltas:
        assert store.partitions.apply([made]) == [Applied(ApplyStatus.OK, made.next_offset)]


def calls_of(server: PrivateRedis, act: Callable[[], object]) -> int:
    """How many scripts the server runs meanwhile."""

    def count() -> int:
        found = client.info("commandstats")
        return sum(int(found.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("eval", "evalsha"))

    with Redis.from_url(server.url) as client:
        before = count()
        act()
        return count() - before


def dump(store: Store) -> dict[bytes, bytes]:
    """Everything that the server holds."""
    client = store._connection.client
    return {key: client.dump(key) for key in client.scan_iter()}


def test_a_script_that_touches_another_key_is_refused_in_these_tests(store: Store) -> None:
    script = script_of('return redis.call("GET", KEYS[1] .. ARGV[1])')
    assert store._connection.run(script, ["a key\0[*?]"], "") is None
    with pytest.raises(RedisError, match=r"access .*key"):
        store._connection.run(script, ["a key\0[*?]"], "x")


def test_no_script_touches_another_key(store: Store, server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, run = set[str](), Connection._run

    def noted(self: Connection, calls: Sequence[Call]) -> list[object]:
        ran.update(call.script.name for call in calls)
        return run(self, calls)

    monkeypatch.setattr(Connection, "_run", noted)
    partitions, evaluation, outbox = store.partitions, store.evaluation, store.outbox
    # counts: within the limit and beyond it, late, folded, in a node that fell back
    applied(store, delta(0, BUCKET_MS, "a"), delta(1, 2 * BUCKET_MS, "a", "b", "beyond"))
    assert set(store.counts.tables(partitions.seal([P], 2 * BUCKET_MS))["fp"]) == {"a", "b", OTHER_STREAM}
    applied(store, delta(2, BUCKET_MS, "a", "beyond"), delta(3, 5 * BUCKET_MS, "a"), delta(4, 6 * BUCKET_MS, "a"))
    partitions.seal([P], 6 * BUCKET_MS, 4 * BUCKET_MS, {P: 6})
    applied(store, delta(5, 4 * BUCKET_MS, "a"), delta(6, 6 * BUCKET_MS, "a"))
    (worst,) = store.exemplars.worst([P], "fp", "a", (0, 7 * BUCKET_MS), 1)
    assert store.pictures.keep(P, worst, b"jpeg")
    partitions.forget(partitions.dead([P], 10**12))
    assert set(store.counts.totals([P])) == {OTHER_STREAM, GONE_STREAM}
    partitions.claim(P, 2, "a")
    partitions.start(P, 2, "a", 8)
    partitions.keep({P: "a"})
    assert partitions.set_idle(P, "a", True)
    assert store.rollup.run(P, 10**9, 10**9, 1.0)
    assert store.counts.members([P], 0) == []
    # what is kept once
    store.catalog.register_partitions([P])
    assert store.shards.lease("a", 10.0).held
    assert store.sealing.add(Sealed(), 0, {P: 1})
    evaluation.heartbeat(0, 1.0)
    assert evaluation.decide(0, 0, [], ["one", "two"])
    assert store.checkpoints.write(1, {("rule", "fp"): {"a": Kept(0, b"row")}}, {0: 0})
    assert store.checkpoints.give_up(1, ("rule", "gone"))
    assert (outbox.raise_self_alert("own", "three"), outbox.end_self_alert("own", "three", "four")) == (True, True)
    outbox.now_ms()
    first, second, *_ = outbox.fetch("hook", 0)
    assert outbox.settle("hook", first.id, "alert", "held")
    assert outbox.bury("hook", second, "dead", "alert")
    assert outbox.backlog("hook").entries == 2
    store.feedback.add(Feedback("1", About("alert", "rule", "a", 0, 1), "fault", "", "", 0), [(worst, b"jpeg")])
    assert len(store.feedback.all()) == 1
    # other numbers of shards
    stream = next(name for name in map(str, range(99)) if shard_of(name, 2) == 1)
    outbox.append(json.dumps({"type": "alert.firing", "data": {"rule": "r", "stream": stream, "alert_id": "a"}}))
    for number in (2, 1):
        seats = store.shards.lease("a", 10.0, number)
        assert store.shard_move.begin("a", seats.layout, seats.change_to)
        assert store.shards.lease("a", 10.0, number).held == {0}
        store.shard_move.run([("rule", "fp")], lambda: None)
        assert len(store.shards.lease("a", 10.0, number).held) == number
    # logs on Redis Streams
    settings = RedisStreamSettings(topics=("keys",), partitions=1)
    source = RedisStreamSource(settings, RedisSettings(url=SecretStr(server.url)), "keys")
    for _ in range(2):
        source._next_balance_s = 0.0
        source.poll(0.0)
    store._connection.run_many([append_call(Partition("keys", 0), 10, b"value", b"key", (), 1)])
    assert source.offset_at(Partition("keys", 0), 1) == 0
    source.close()
    assert ran == {*SCRIPTS, *LOG_SCRIPTS} - {"common"}


def test_one_call_is_enough_unless_a_bucket_was_sealed_since_the_last(store: Store, server: PrivateRedis) -> None:
    applied(store, delta(0, BUCKET_MS, "a", "b"))
    store.partitions.seal([P], BUCKET_MS)
    assert calls_of(server, lambda: applied(store, delta(1, 2 * BUCKET_MS, "a", "beyond"))) == 1
    assert calls_of(server, lambda: store.partitions.seal([P], 2 * BUCKET_MS)) == 1
    late = [delta(offset, BUCKET_MS, "a", "beyond") for offset in (2, 3)]
    assert calls_of(server, lambda: applied(store, late[0])) == 2
    assert calls_of(server, lambda: applied(store, late[1])) == 1
    applied(store, delta(4, 5 * BUCKET_MS, "a"))
    assert calls_of(server, lambda: store.partitions.seal([P], 5 * BUCKET_MS)) == 2


def test_a_script_that_asks_for_keys_has_written_nothing(store: Store) -> None:
    applied(store, delta(0, BUCKET_MS, "a"), delta(1, 2 * BUCKET_MS, "a"))
    partitions, before = store.partitions, dump(store)
    call = partitions._apply_call(delta(2, 3 * BUCKET_MS, "a"))
    asked = {
        "apply": call._replace(keys=call.keys[:6]),
        "seal": partitions._seal_call(P, 3 * BUCKET_MS, 0, 2),
    }
    for name, made in asked.items():
        ((mark, *names),) = store._connection._run([made])
        assert (mark, len(names)) == (b"UNDECLARED", 4 if name == "apply" else 6), name
        assert dump(store) == before


def test_a_call_that_never_has_the_keys_it_needs_fails_by_name(store: Store, server: PrivateRedis) -> None:
    restless = script_of('return {"UNDECLARED", KEYS[#KEYS] .. "+"}')
    settled = script_of("return #KEYS")

    def run() -> None:
        with pytest.raises(StoreError, match=rf"test on k still needs k\+{{{KEY_ROUNDS}}} after {KEY_ROUNDS} calls"):
            store._connection.run_many([Call(settled, ["k"], ()), Call(restless, ["k"], ())])

    with pytest.raises(StoreError):
        store._connection.run(restless, ["k"])
    assert store._connection.run(settled, ["k"]) == 1
    assert calls_of(server, run) == KEY_ROUNDS + 1
