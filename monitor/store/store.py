"""The one object that the rest of the monitor talks to."""

from __future__ import annotations

from monitor.store.alerts import AlertState
from monitor.store.connection import Connection, ResponseError, connect
from monitor.store.outbox import Outbox
from monitor.store.partitions import Limits, PartitionState
from monitor.store.settings import RedisSettings


class Store(PartitionState, AlertState, Outbox):
    """All state of one monitor. Safe to share between threads; built by `open_store`."""

    def __init__(self, connection: Connection, monitor: str, limits: Limits, wait_aof_ms: int = 0) -> None:
        PartitionState.__init__(self, connection, monitor, limits)
        AlertState.__init__(self, connection, monitor)
        Outbox.__init__(self, connection, monitor)
        self._wait_aof_ms = wait_aof_ms

    def ping(self) -> None:
        """Raises StoreError while Redis does not answer."""
        self._connection.read_many([("PING",)])

    def settle_on_disk(self) -> bool:
        """Wait until what was applied so far is on Redis' disk; False where it is not within the time-out.

        True at once where the server has no append-only file, or cannot tell (before 7.2, or a cluster).

        Raises:
            StoreError: Redis does not answer.
        """
        if not self._wait_aof_ms:
            return True
        # The file is written in order: when a write made now is on disk, so is all before it, whichever
        # connection it came over. WAITAOF alone would wait for the writes of its own connection.
        mark = (f"{self._alerts_prefix}:settled", "1", "EX", 60)
        try:
            _, (local, _) = self._connection.read_many([("SET", *mark), ("WAITAOF", 1, 0, self._wait_aof_ms)])
        except ResponseError as error:  # asked every time: after a failover another server answers
            if "waitaof" in str(error).lower():  # unknown, forbidden, or no append-only file
                return True
            raise
        return int(local) >= 1

    def close(self) -> None:
        """Close all connections; never raises."""
        self._connection.close()


def open_store(settings: RedisSettings, monitor: str, limits: Limits | None = None) -> Store:
    """Connect, check the server, and return the state of that monitor.

    Raises:
        StoreError: Redis does not answer.
        StoreConfigError: this Redis must not be used, and why.
    """
    connection = connect(settings)
    wait_ms = round(settings.timeout_s * 500) if settings.wait_aof and not connection.is_cluster else 0
    return Store(connection, monitor, limits or Limits(), wait_ms)
