"""What is kept of the worst images of each stream and hour beside their thumbnails, and for as long: large pictures."""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

from monitor.core.kept_worst import hour_of
from monitor.core.types import Exemplar, Partition
from monitor.store.connection import SCRIPTS
from monitor.store.keyspace import PartitionKeys
from monitor.store.packing import packed_name

MOST_BYTES = 192 * 1024
"""Of the large pictures of a stream and hour: a dozen of 16 KB, or four of 48."""


def picture_name(image: Exemplar) -> str:
    """Name of what belongs to an image: the same for its thumbnail as for its line among the worst of a bucket."""
    return xxhash.xxh3_64(f"{image.event_time_ms}\0{image.p_value!r}\0{packed_name(image.id)}".encode()).hexdigest()


class Pictures:
    """Keeps them and finds them. Every method may raise StoreError.

    Args:
        most: images of a stream and hour that have one.
    """

    def __init__(self, keys: PartitionKeys, most: int, retention_s: int) -> None:
        self._keys, self._most, self._retention_s = keys, most, retention_s

    def keep(self, partition: Partition, image: Exemplar, picture: bytes) -> bool:
        """Keep the large picture of an image; False where worse ones have taken all the room.

        Of a stream beyond `Limits.max_streams` none is kept.
        """
        place = image.fingerprint, hour_of(image.event_time_ms), packed_name(image.stream)
        keys = [
            self._keys.of(partition, "totals"),
            *(self._key(kind, partition, *place) for kind in ("li", "lp", "lm")),
        ]
        what = packed_name(image.stream), picture_name(image), image.rank, picture, b""
        limits = self._most, MOST_BYTES, self._retention_s
        return bool(self._keys.connection.run(SCRIPTS["picture"], keys, *what, *limits))

    def names(self, partitions: Iterable[Partition], images: Iterable[Exemplar]) -> set[str]:
        """The names (`picture_name`) of those of the images that have a large picture."""
        wanted = [(p, image, picture_name(image)) for p in partitions for image in images]
        replies = self._keys.connection.read_many(
            [
                ("HEXISTS", self._key("lp", p, e.fingerprint, hour_of(e.event_time_ms), packed_name(e.stream)), name)
                for p, e, name in wanted
            ]
        )
        return {name for (_, _, name), found in zip(wanted, replies, strict=True) if found}

    def of(self, partitions: Iterable[Partition], fingerprint: str, stream: str, time_ms: int, name: str) -> bytes:
        """The large picture of that name, of an image with that event time; b"" where there is none."""
        hour_ms, stream = hour_of(time_ms), packed_name(stream)
        keys = [self._key("lp", p, fingerprint, hour_ms, stream) for p in partitions]
        found = self._keys.connection.read_many([("HGET", key, name) for key in keys])
        return next((bytes(picture) for picture in found if picture), b"")

    def _key(self, kind: str, partition: Partition, fingerprint: str, hour_ms: int, stream: str) -> str:
        return self._keys.of(partition, f"{kind}:{fingerprint}:{hour_ms}:{stream}")
