"""The one object that the rest of the monitor talks to."""

from __future__ import annotations

from monitor import config
from monitor.store.alerts import AlertState
from monitor.store.connection import Connection, connect
from monitor.store.outbox import Outbox
from monitor.store.partitions import Limits, PartitionState


class Store(PartitionState, AlertState, Outbox):
    """All state of one monitor. Safe to share between threads; built by `open_store`."""

    def __init__(self, connection: Connection, monitor: str, limits: Limits) -> None:
        PartitionState.__init__(self, connection, monitor, limits)
        AlertState.__init__(self, connection, monitor)
        Outbox.__init__(self, connection, monitor)

    def ping(self) -> None:
        """Raises StoreError while Redis does not answer."""
        self._connection.read_many([("PING",)])

    def close(self) -> None:
        """Close all connections; never raises."""
        self._connection.close()


def open_store(settings: config.Redis, monitor: str, limits: Limits | None = None) -> Store:
    """Connect, check the server, and return the state of that monitor.

    Raises:
        StoreError: Redis does not answer.
        StoreConfigError: this Redis must not be used, and why.
    """
    return Store(connect(settings), monitor, limits or Limits())
