"""Rolls closed buckets up into longer ones, which take their place: counts of months in little memory."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import msgpack

from monitor.core.steps import Step
from monitor.core.types import Partition, Vector
from monitor.store.connection import SCRIPTS, Value
from monitor.store.counts import parse_member
from monitor.store.keyspace import Member, PartitionKeys, index_name
from monitor.store.packing import lengthened, packed_name, packed_vector, shortened, tables_of, unpacked_worst

K = TypeVar("K", str, bytes)

MADE_S = 600
"""What was added up and not put in place, because the process died, is removed after so long."""
READ_S = 60
"""So long after their index has changed, others may still read the buckets that it had named."""
CHUNK = 200
"""Streams written by one command: some 240 KB."""
MOST_IMAGES = 4
"""Worst images that a longer bucket names for a stream."""
ROWS = 60
"""Buckets looked up at a time, of a partition and step."""


class _Group(NamedTuple):
    """Closed buckets of one profile and partition that become one bucket of the next step."""

    target: Member
    level: int
    """Step of the target; the buckets have the one before."""
    starts: Sequence[int]


class Rollup:
    """Every method may raise StoreError; after it, or after a crash, the same is found to be done again."""

    def __init__(self, keys: PartitionKeys, steps: Sequence[Step], exemplars_kept: int) -> None:
        self._connection, self._keys = keys.connection, keys
        self._steps, self._most_images = steps, min(exemplars_kept, MOST_IMAGES)

    def run(self, partition: Partition, decided_ms: int, until_ms: int, for_s: float) -> bool:
        """Roll up what is old enough, oldest first; False where `for_s` was over before all was.

        Args:
            decided_ms: the newest bucket decided: ages are measured from it.
            until_ms: buckets that end later stay as they are.
        """
        cursor = self._keys.of(partition, "cursor")
        next_offset, sealed, judged_until = self._connection.read("HMGET", cursor, "next", "sealed", "judged_until")
        if next_offset is None or (judged_until and int(next_offset) < int(judged_until)):
            return True  # it counts again, also in closed buckets, what a fall-back of its node has lost
        started_s = time.monotonic()
        for level, (step, longer) in enumerate(pairwise(self._steps), 1):
            old_ms = min(decided_ms - step.until_ms, until_ms)
            before_ms = old_ms // longer.length_ms * longer.length_ms
            while groups := self._due(partition, level, before_ms):
                for group in groups:
                    if time.monotonic() - started_s > for_s:
                        return False
                    if not self._replace(group, (next_offset, int(sealed or -1)), decided_ms):
                        return True  # the partition or its buckets have changed: looked at the next time
        return True

    def _due(self, partition: Partition, level: int, before_ms: int) -> list[_Group]:
        index = self._keys.of(partition, index_name(level - 1))
        found = self._connection.read("ZRANGEBYSCORE", index, "-inf", f"({before_ms}", "LIMIT", 0, ROWS)
        length_ms = self._steps[level].length_ms
        groups: dict[tuple[str, int], list[int]] = {}
        for fingerprint, start in map(parse_member, found):
            groups.setdefault((fingerprint, start // length_ms * length_ms), []).append(start)
        if len(found) == ROWS and len(groups) > 1:  # the last may go on beyond what was looked up
            del groups[max(groups, key=lambda key: key[1])]
        return [_Group((partition, *key), level, starts) for key, starts in groups.items()]

    def _replace(self, group: _Group, read_at: tuple[bytes, int], decided_ms: int) -> bool:
        """Add the buckets up, to what the target holds already, and put the sum in their place."""
        (partition, fingerprint, start), level, starts = group
        indexes = [self._keys.of(partition, index_name(at)) for at in (level - 1, level)]
        member = f"{fingerprint}:{start}"
        # what the key holds for a while after it was rolled up itself does not count
        goes_on = self._connection.read("ZSCORE", indexes[1], member) is not None
        sources = [((partition, fingerprint, at), level - 1) for at in starts]
        places = [(group.target, level), *sources] if goes_on else sources
        keys = [self._keys.bucket(*place) for place in places], [self._keys.worst(*place) for place in places]
        tables = self._connection.read_many([("HGETALL", key) for key in (*keys[0], *keys[1])])
        made = [self._keys.of(partition, f"{kind}:made:{uuid.uuid4().hex}") for kind in "bw"]
        added = zip(places, tables[: len(places)], strict=True)
        tables_read = ((start, lengthened(table) if at else table) for (_, at), table in added)
        counts: Mapping[str, Vector] = tables_of(tables_read).get(start, {})
        vectors = {packed_name(stream): shortened(packed_vector(vector)) for stream, vector in counts.items()}
        self._write(made[0], vectors)
        self._write(made[1], _worst(tables[len(places) :], self._most_images))
        targets = made[0], self._keys.bucket(group.target, level), made[1], self._keys.worst(group.target, level)
        history_ms = self._steps[-1].until_ms
        read = [*keys[0][-len(starts) :], *keys[1][-len(starts) :]]
        found = (*read_at, int(goes_on), int(bool(counts)))
        kept = (decided_ms - history_ms, history_ms // 1000, READ_S)
        return bool(
            self._connection.run(
                SCRIPTS["roll_up"],
                [self._keys.of(partition, "cursor"), *indexes, *targets, *read],
                *(*found, start, member, *kept),
                *(f"{fingerprint}:{at}" for at in starts),
            )
        )

    def _write(self, key: str, table: Mapping[K, bytes]) -> None:
        items = list(table.items())
        for at in range(0, len(items), CHUNK):
            fields: list[Value] = [part for item in items[at : at + CHUNK] for part in item]
            self._connection.read_many([("HSET", key, *fields), ("EXPIRE", key, MADE_S)])


def _worst(tables: Sequence[Mapping[bytes, bytes]], most: int) -> dict[bytes, bytes]:
    """{stream: its packed worst images}, the worst of all tables."""
    held: dict[bytes, list[tuple[float, int, str, float]]] = {}
    for table in tables:
        for name, packed in table.items():
            held.setdefault(name, []).extend(unpacked_worst(packed))
    return {name: msgpack.packb(sorted(images)[:most]) for name, images in held.items()}
