"""What the fleet publishes about itself: the partitions it reads and the profiles that count in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from monitor.core.buckets import Layout
from monitor.core.types import Partition
from monitor.store.keyspace import SEPARATOR, MonitorKeys, expiry


class Catalog:
    """Partitions, layouts and profiles of one monitor. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._connection = keys.connection
        self._partitions = keys.key("partitions")
        self._layouts, self._profiles = keys.texts("layouts"), keys.texts("profiles")

    def register_partitions(self, partitions: Iterable[Partition]) -> None:
        """Make partitions known to the evaluator, wherever it runs."""
        members = [f"{p.topic}{SEPARATOR}{p.index}" for p in partitions]
        if members:
            self._connection.read_many([("SADD", self._partitions, *members), expiry(self._partitions)])

    def partitions(self) -> tuple[Partition, ...]:
        """Every partition registered so far, in order."""
        members = self._connection.read("SMEMBERS", self._partitions)
        pairs = [member.decode().rpartition(SEPARATOR) for member in members]
        return tuple(sorted(Partition(topic, int(index)) for topic, _, index in pairs))

    def put_layouts(self, layouts: Mapping[str, Layout]) -> None:
        """{profile fingerprint: layout}: what is needed to read the vectors without loading the profile."""
        self._layouts.put_all({name: layout.to_json() for name, layout in layouts.items()})

    def layouts(self) -> dict[str, Layout]:
        """What `put_layouts` stored, of every profile that counted here lately."""
        return {name: Layout.from_json(text) for name, text in self._layouts.all().items()}

    def put_profiles(self, manifests: Mapping[str, str]) -> None:
        """{profile fingerprint: JSON of its manifest}: what the profile page shows."""
        self._profiles.put_all(manifests)

    def profiles(self) -> dict[str, str]:
        """What `put_profiles` stored, of every profile that counted here lately."""
        return self._profiles.all()
