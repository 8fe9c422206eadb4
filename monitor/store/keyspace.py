"""Names of the keys in Redis, and the hashes of text among them."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Mapping
from functools import cache
from itertools import count
from urllib.parse import quote

from monitor.core.types import Partition
from monitor.store.connection import Connection, Value

TTL_S = 90 * 86_400
"""State that was not written for a quarter is removed; every write to it starts the time again."""
SEPARATOR = "\x00"
"""Between two names in one field or member."""

Member = tuple[Partition, str, int]
"""(partition, profile fingerprint, bucket start ms): where the counts of one bucket stand."""


class PartitionKeys:
    """Keys of one monitor's partitions, under `{lw:<monitor>:<topic>:<partition>}`."""

    def __init__(self, connection: Connection, monitor: str) -> None:
        self.connection = connection
        self._monitor = monitor

    def prefix(self, partition: Partition) -> str:
        """What every key of the partition begins with: the hash tag that keeps them in one slot of a cluster."""
        # quoted, because a brace in a topic would end the hash tag early and spread the keys over the cluster
        return f"{{lw:{self._monitor}:{quote(partition.topic, safe='._-')}:{partition.index}}}"

    def of(self, partition: Partition, name: str) -> str:
        """The key of that name."""
        return f"{self.prefix(partition)}:{name}"

    def bucket(self, member: Member, level: int = 0) -> str:
        """The hash {stream: vector} of one bucket; `level` counts the steps of the history, from 0."""
        return self.of(member[0], bucket_name(member[1:], level))

    def worst(self, member: Member, level: int = 0) -> str:
        """The hash {stream: its most unusual images} of one bucket."""
        return self.of(member[0], worst_name(member[1:], level))


def bucket_name(bucket: tuple[str, int], level: int = 0) -> str:
    """What follows the prefix in `PartitionKeys.bucket`; apply.lua and seal.lua make the same name for level 0."""
    return f"b{level or ''}:{bucket[0]}:{bucket[1]}"


def worst_name(bucket: tuple[str, int], level: int = 0) -> str:
    """Likewise for `PartitionKeys.worst`."""
    return f"w{level or ''}:{bucket[0]}:{bucket[1]}"


def index_name(level: int) -> str:
    """What follows the prefix in the key of the index of closed buckets."""
    return f"closed{level or ''}"


SLOTS = 16_384
"""Of a Redis Cluster."""
SLOTS_NEAR = SLOTS // 64
"""How far the slot of a shard may lie from its place: a tag is found in some 30 tries."""


class MonitorKeys:
    """Keys of what one monitor keeps once for all partitions, under `{lw:<monitor>:alerts}`, or for one shard.

    Args:
        shard: the first one shares the hash tag of what is kept once.
    """

    def __init__(self, connection: Connection, monitor: str, shard: int = 0) -> None:
        self.connection = connection
        self._prefix = f"{{{shard_tag(monitor, shard)}}}"

    def key(self, *parts: str) -> str:
        """The key of that name."""
        return ":".join((self._prefix, *parts))

    def texts(self, *parts: str) -> TextHash:
        """The hash of that name."""
        return TextHash(self.connection, self.key(*parts))


@cache
def shard_tag(monitor: str, shard: int) -> str:
    """The hash tag of a shard.

    Their slots lie evenly apart (1/2, 1/4, 3/4, 1/8, ... of the way round from that of the first), so that each node of
    a Redis Cluster has some, whichever part of the slots is its own.
    """
    first = f"lw:{monitor}:alerts"
    if not shard:
        return first
    share = sum((shard >> bit & 1) / (2 << bit) for bit in range(shard.bit_length()))  # van der Corput's sequence
    wanted = (slot_of(first) + round(share * SLOTS)) % SLOTS
    tags = (f"{first}:{shard}.{i}" for i in count())
    return next(tag for tag in tags if (slot_of(tag) - wanted) % SLOTS < SLOTS_NEAR)


def slot_of(tag: str) -> int:
    """The slot of a Redis Cluster in which keys with that hash tag lie."""
    return crc_hqx(tag.encode(), 0) % SLOTS


class TextHash:
    """A hash {name: text}. Every method may raise StoreError."""

    def __init__(self, connection: Connection, key: str) -> None:
        self._connection = connection
        self._key = key

    def put(self, name: str, text: str) -> None:
        """Add or replace one text; it stays until it is removed or nothing is written for `TTL_S`."""
        self.put_all({name: text})

    def put_all(self, texts: Mapping[str, str]) -> None:
        """Likewise for several."""
        commands = [("HSET", self._key, *item) for item in texts.items()]
        self._connection.read_many([*commands, expiry(self._key)])

    def renew(self) -> None:
        """Keep what there is for another `TTL_S`."""
        self._connection.read_many([expiry(self._key)])

    def names(self) -> set[str]:
        """The names of all texts."""
        return {name.decode() for name in self._connection.read("HKEYS", self._key)}

    def all(self) -> dict[str, str]:
        """Every text by its name; empty where there is none."""
        found = self._connection.read("HGETALL", self._key)
        return {name.decode(): text.decode() for name, text in found.items()}

    def remove(self, name: str) -> bool:
        """Remove one; False where there is none of that name."""
        return bool(self._connection.read("HDEL", self._key, name))


def name_of(partition: Partition) -> str:
    """The partition as a field or member of what a monitor keeps once."""
    return f"{partition.topic}{SEPARATOR}{partition.index}"


def partition_of(name: str) -> Partition:
    """Inverse of `name_of`."""
    topic, _, index = name.rpartition(SEPARATOR)
    return Partition(topic, int(index))


def expiry(key: str) -> tuple[Value, ...]:
    """The command that starts the key's time to live again."""
    return "EXPIRE", key, TTL_S
