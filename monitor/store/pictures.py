"""Heat maps and large pictures of the worst images of each stream and hour, beside their thumbnails."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import astuple

import msgpack
import numpy as np

from detectors.images.regions import Region
from monitor.core.heat import Heat
from monitor.core.kept_images import hour_of
from monitor.core.types import Exemplar, Partition
from monitor.store.connection import SCRIPTS
from monitor.store.keyspace import PartitionKeys
from monitor.store.packing import packed_name

MOST_BYTES = 192 * 1024
"""Of the large pictures of a stream and hour: a dozen of 16 KB, or four of 48."""


class Pictures:
    """Keeps them and finds them. Every method may raise StoreError.

    Args:
        most: images of a stream and hour that have one.
    """

    def __init__(self, keys: PartitionKeys, most: int, retention_s: int) -> None:
        self._keys, self._most, self._retention_s = keys, most, retention_s

    def keep(self, partition: Partition, image: Exemplar, picture: bytes = b"", heat: Heat | None = None) -> bool:
        """Keep the large picture of an image, its heat map, or both; False where worse ones have taken all the room.

        Of a stream beyond `Limits.max_streams` none is kept.
        """
        keys = [self._keys.of(partition, "totals"), *(self._key(kind, partition, image) for kind in ("li", "lp", "lm"))]
        what = packed_name(image.stream), image.name, image.rank, picture, _packed(heat)
        limits = self._most, MOST_BYTES, self._retention_s
        return bool(self._keys.connection.run(SCRIPTS["picture"], keys, *what, *limits))

    def names(self, partitions: Iterable[Partition], images: Iterable[Exemplar]) -> set[str]:
        """The names (`Exemplar.name`) of those of the images that have a large picture."""
        wanted = [(p, image) for p in partitions for image in images]
        commands = [("HEXISTS", self._key("lp", p, image), image.name) for p, image in wanted]
        replies = self._keys.connection.read_many(commands)
        return {image.name for (_, image), found in zip(wanted, replies, strict=True) if found}

    def heat(self, partitions: Iterable[Partition], images: Iterable[Exemplar]) -> dict[str, Heat]:
        """{`Exemplar.name`: heat map} of those of the images that have one."""
        wanted = [(p, image) for p in partitions for image in images]
        replies = self._keys.connection.read_many([("HGET", self._key("lm", p, i), i.name) for p, i in wanted])
        return {image.name: _unpacked(packed) for (_, image), packed in zip(wanted, replies, strict=True) if packed}

    def of(self, partitions: Iterable[Partition], image: Exemplar, name: str) -> bytes:
        """The large picture of that name, b"" if there is none; of `image` its profile, stream and hour count."""
        found = self._keys.connection.read_many([("HGET", self._key("lp", p, image), name) for p in partitions])
        return next((bytes(picture) for picture in found if picture), b"")

    def _key(self, kind: str, partition: Partition, image: Exemplar) -> str:
        hour_ms, stream = hour_of(image.event_time_ms), packed_name(image.stream)
        return self._keys.of(partition, f"{kind}:{image.fingerprint}:{hour_ms}:{stream}")


def _packed(heat: Heat | None) -> bytes:
    if heat is None:
        return b""
    regions = [astuple(region) for region in heat.regions]
    packed: bytes = msgpack.packb((heat.levels.shape, zlib.compress(heat.levels.tobytes()), regions))
    return packed


def _unpacked(packed: bytes) -> Heat:
    shape, levels, regions = msgpack.unpackb(packed)
    flat = np.frombuffer(zlib.decompress(levels), np.uint8)
    return Heat(flat.reshape(shape), tuple(Region(*region) for region in regions))
