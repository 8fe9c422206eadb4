"""What one monitor keeps once: the partitions it reads, the profiles that count in it, and its silences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from monitor.core.buckets import Layout
from monitor.core.types import Partition
from monitor.store.keyspace import SEPARATOR, MonitorKeys, expiry


class Catalog:
    """Partitions, layouts and profiles of one monitor. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._keys = keys

    def register_partitions(self, partitions: Iterable[Partition]) -> None:
        """Make partitions known to the evaluator, wherever it runs."""
        members = [f"{p.topic}{SEPARATOR}{p.index}" for p in partitions]
        if members:
            key = self._keys.key("partitions")
            self._keys.connection.read_many([("SADD", key, *members), expiry(key)])

    def partitions(self) -> tuple[Partition, ...]:
        """Every partition registered so far, in order."""
        members = self._keys.connection.read("SMEMBERS", self._keys.key("partitions"))
        pairs = [member.decode().rpartition(SEPARATOR) for member in members]
        return tuple(sorted(Partition(topic, int(index)) for topic, _, index in pairs))

    def put_layouts(self, layouts: Mapping[str, Layout]) -> None:
        """{profile fingerprint: layout}: what is needed to read the vectors without loading the profile."""
        self._keys.put_texts({name: layout.to_json() for name, layout in layouts.items()}, "layouts")

    def layouts(self) -> dict[str, Layout]:
        """What `put_layouts` stored, of every profile that counted here lately."""
        return {name: Layout.from_json(text) for name, text in self._keys.texts("layouts").items()}

    def put_profiles(self, manifests: Mapping[str, str]) -> None:
        """{profile fingerprint: JSON of its manifest}: what the profile page shows."""
        self._keys.put_texts(manifests, "profiles")

    def profiles(self) -> dict[str, str]:
        """What `put_profiles` stored, of every profile that counted here lately."""
        return self._keys.texts("profiles")


class StoredSilences:
    """Silences by id, as JSON. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._keys = keys

    def put(self, silence_id: str, document: str) -> None:
        """Add or replace a silence (JSON); it stays listed until it is removed."""
        self._keys.put_texts({silence_id: document}, "silences")

    def all(self) -> dict[str, str]:
        """{id: JSON} of all silences, including those that have ended."""
        return self._keys.texts("silences")

    def remove(self, silence_id: str) -> bool:
        """Remove a silence; False where there is none of that id."""
        return self._keys.remove_text(silence_id, "silences")
