"""What the rules remember of the streams: kept in memory, stored now and then, made again from the sealed buckets.

A row follows from the counts of the sealed buckets, so it need not be stored with each. After every bucket the rows of
the slices that were stored longest ago are written. After a take-over the rows are read, and advanced by the buckets
that were decided since: the same rows as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set

import numpy as np

from monitor.core.buckets import Layout
from monitor.core.table import Table
from monitor.core.windows import EVERY, Windows
from monitor.rules.rule import ClosedBucket, Rows, Rule
from monitor.store.checkpoints import Checkpoints, Kept, StateKey, slice_of

PER_BUCKET_BYTES = 256 * 1024
"""Rows stored after a bucket by all shards, unless one slice is more: 2 GB of append-only file a day with 10 s buckets.
Twenty streams are stored whole with every bucket."""
CHANGED = 64
"""Rows stored at once because their stream's alert has changed: should a node of Redis lose counts, it fires on."""


class RuleStates:
    """The rows of all rules that keep state, as of the last decided bucket.

    Args:
        oldest_ms: how far behind a bucket the mark of a slice may lie: the sealed buckets since must still be there.
        shards: of which these are the rows of one.
    """

    def __init__(self, store: Checkpoints, rules: Sequence[Rule], oldest_ms: int, shards: int = 1) -> None:
        self._store, self._oldest_ms, self._shards = store, oldest_ms, shards
        self._rules = tuple(rule for rule in rules if rule.keeps_state)
        self._rows: dict[StateKey, Rows] = {}
        self._layouts: dict[StateKey, Layout] = {}
        self._moved: dict[StateKey, set[str]] = {}
        """Streams whose row in Redis is an older one."""
        self._last_ms: dict[StateKey, int] = {}
        """The last bucket with counts; of rows that were only read, the last after which one was stored."""
        self._marks: dict[int, int] = {}
        self._as_of: dict[StateKey, dict[str, int]] = {}
        """The bucket that each row was read as the state after, until `replay` is over."""

    # ---------------------------------------------------------------- in memory

    def rows(self, rule: Rule, fingerprint: str, layout: Layout) -> Rows:
        """What one rule remembers under one profile; `judge` changes it."""
        key = (rule.name, fingerprint)
        if key not in self._rows:
            self._rows[key], self._layouts[key] = rule.rows(layout), layout
        return self._rows[key]

    def judged(self, rule: Rule, fingerprint: str, streams: Collection[str], bucket_ms: int) -> None:
        """Note that the rows of these streams have moved in that bucket."""
        if rule.keeps_state and streams:
            self._moved.setdefault((rule.name, fingerprint), set()).update(streams)
            self._last_ms[rule.name, fingerprint] = bucket_ms

    def forget(self, streams: Set[str], is_under_way: Callable[[str, str], bool]) -> None:
        """Drop the rows of streams that are dead, but for those whose (rule, stream) has an alert under way."""
        for key, rows in self._rows.items():
            gone = {stream for stream in streams if not is_under_way(key[0], stream) and rows.get(stream) is not None}
            self._store.drop(key, gone)
            rows.drop(gone)
            self._moved.get(key, set()).difference_update(gone)

    def unused(self, before_ms: int, in_use: Set[str]) -> list[StateKey]:
        """The states with rows under other profiles than those in use, without counts since that bucket."""
        return [
            (rule, fingerprint)
            for (rule, fingerprint), last_ms in self._last_ms.items()
            if last_ms < before_ms and fingerprint not in {EVERY, *in_use}
        ]

    def give_up(self, version: int, key: StateKey) -> bool:
        """Drop all rows of a state, first in Redis; after a crash in between the rest is found again.

        Args:
            version: of the evaluator's state.

        Returns:
            False where another evaluator moved on.
        """
        if not self._store.give_up(version, key):
            return False
        for known in (self._rows, self._layouts, self._moved, self._as_of, self._last_ms):
            known.pop(key, None)
        return True

    # ---------------------------------------------------------------- take over

    def load(
        self, version: int, fingerprints: Callable[[Rule], Mapping[str, Layout]], alive: Callable[[], None]
    ) -> int:
        """Read the rows as they were stored; returns the bucket after which the decided ones are to be replayed.

        Args:
            version: of the evaluator's state.
            fingerprints: {fingerprint: layout} that a rule may have rows under.
            alive: called now and then.
        """
        self._rows, self._layouts, self._moved, self._as_of, self._last_ms = {}, {}, {}, {}, {}
        self._marks, whole = self._store.marks()
        if not whole:
            self._store.begin(version, self._marks)
        for rule in self._rules:
            for fingerprint, layout in fingerprints(rule).items():
                key, rows = (rule.name, fingerprint), self.rows(rule, fingerprint, layout)
                as_of = self._as_of[key] = {}
                for found in self._store.read(key, self._marks):
                    rows.put({stream: kept.packed for stream, kept in found.items()})
                    as_of.update({stream: kept.bucket_ms for stream, kept in found.items()})
                    alive()
                if as_of:
                    self._last_ms[key] = max(as_of.values())
        reach_ms = max([rule.window_ms for rule in self._rules], default=0)
        return min(self._marks.values()) - reach_ms

    def replay(self, bucket: tuple[int, int], watched: Mapping[str, Table], rule: Rule, windows: Windows) -> None:
        """Advance the rows of one rule that are older than a decided bucket; buckets come oldest first.

        Args:
            bucket: (start ms, length ms).
            watched: the counts that `judge` was given then, by fingerprint.
            windows: end with the bucket.
        """
        start_ms, length_ms = bucket
        for fingerprint, counts in watched.items():
            key = (rule.name, fingerprint)
            if key not in self._rows:
                continue
            as_of, marks = self._as_of[key], self._marks
            behind = [as_of.get(stream, marks[slice_of(stream)]) < start_ms for stream in counts.streams]
            moving = counts.chosen(np.array(behind, dtype=bool))
            if moving:
                layout = self._layouts[key]
                rule.judge(ClosedBucket(start_ms, length_ms, fingerprint, layout, moving, windows), self._rows[key])
                self.judged(rule, fingerprint, moving.streams, start_ms)

    # ---------------------------------------------------------------- store

    def store(self, version: int, bucket_ms: int, changed: Iterable[tuple[str, str]]) -> bool:
        """Store some rows as of a bucket that has just been decided; False where another evaluator moved on.

        Args:
            version: of the evaluator's state after the decision.
            changed: (rule, stream) whose alert has changed its phase.
        """
        urgent = sorted(changed)[:CHANGED]
        rows = {
            key: self._kept(key, bucket_ms, moved & {stream for rule, stream in urgent if rule == key[0]})
            for key, moved in self._moved.items()
        }
        marks: dict[int, int] = {}
        size = 0
        for i in sorted(self._marks, key=lambda i: (self._marks[i], i)):
            behind_ms = bucket_ms - self._marks[i]
            if behind_ms <= 0 or (marks and size * self._shards >= PER_BUCKET_BYTES and behind_ms <= self._oldest_ms):
                break
            for key, moved in self._moved.items():
                found = self._kept(key, bucket_ms, (stream for stream in moved if slice_of(stream) == i))
                rows[key].update(found)
                size += sum(len(kept.packed) for kept in found.values())
            marks[i] = bucket_ms
        if not self._store.write(version, rows, marks):
            return False
        for moved in self._moved.values():
            moved.difference_update([stream for stream in moved if slice_of(stream) in marks])
        self._marks.update(marks)
        return True

    def store_all(self, version: int, bucket_ms: int) -> bool:
        """Likewise, all rows."""
        while any(at < bucket_ms for at in self._marks.values()):
            if not self.store(version, bucket_ms, ()):
                return False
        return True

    def _kept(self, key: StateKey, bucket_ms: int, streams: Iterable[str]) -> dict[str, Kept]:
        packed = ((stream, self._rows[key].get(stream)) for stream in streams)
        return {stream: Kept(bucket_ms, row) for stream, row in packed if row is not None}
