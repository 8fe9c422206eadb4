"""The silences of one monitor."""

from __future__ import annotations

from monitor.store.keyspace import MonitorKeys


class StoredSilences:
    """Silences by id, as JSON. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._keys = keys

    def put(self, silence_id: str, document: str) -> None:
        """Add or replace a silence (JSON); it stays listed until it is removed."""
        self._keys.put_texts({silence_id: document}, "silences")

    def all(self) -> dict[str, str]:
        """{id: JSON} of all silences, ended ones too: who reads them compares the times."""
        return self._keys.texts("silences")

    def remove(self, silence_id: str) -> bool:
        """Forget a silence; False where there is none of that id."""
        return self._keys.remove_text(silence_id, "silences")
