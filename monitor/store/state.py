"""All state of one monitor, and the function that connects to it."""

from __future__ import annotations

from redis.exceptions import ResponseError

from monitor.store.catalog import Catalog
from monitor.store.client import connect
from monitor.store.connection import Connection
from monitor.store.counts import Counts, Exemplars
from monitor.store.evaluation import Sealing
from monitor.store.feedback import FeedbackStore
from monitor.store.keyspace import MonitorKeys, PartitionKeys
from monitor.store.limits import Limits
from monitor.store.partitions import Partitions
from monitor.store.pictures import Pictures
from monitor.store.rollup import Rollup
from monitor.store.settings import RedisSettings
from monitor.store.shard_move import ShardMove
from monitor.store.shards import Shards


class Store:
    """All state of one monitor, by who uses it. Safe to share between threads; built by `open_store`.

    Consumers write through `partitions`; everybody reads `counts`, `exemplars` and `pictures`. `sealing` says which
    buckets all shards judge; `rollup` shortens the history. `catalog`, `silences` (JSON by id), `feedback`, which
    outlives the alerts it is about, and `renewals` (JSON by store of profiles) are small and shared.

    `shards` has the leases, and what is read of all shards. An evaluator decides through the `evaluation` of its shard,
    which fills the `outbox` that a dispatcher empties, and keeps what the rules remember in its `checkpoints`. Those
    here are the first shard's; its outbox has the alerts about the monitor itself, too.
    """

    def __init__(self, connection: Connection, monitor: str, limits: Limits, wait_aof_ms: int = 0) -> None:
        self._connection = connection
        self._wait_aof_ms = wait_aof_ms
        partition_keys = PartitionKeys(connection, monitor)
        self.partitions = Partitions(partition_keys, limits)
        self.counts = Counts(partition_keys, limits.steps)
        self.exemplars = Exemplars(partition_keys, limits.steps)
        self.rollup = Rollup(partition_keys, limits.steps, limits.exemplars_kept)
        self.pictures = Pictures(partition_keys, limits.exemplars_kept, limits.exemplar_retention_s)
        self._monitor_keys = MonitorKeys(connection, monitor)
        self.catalog = Catalog(self._monitor_keys)
        self.silences = self._monitor_keys.texts("silences")
        self.feedback = FeedbackStore(self._monitor_keys)
        self.renewals = self._monitor_keys.texts("renewals")
        self.sealing = Sealing(self._monitor_keys)
        self.shards = Shards(connection, monitor)
        self.shard_move = ShardMove(connection, self.shards)
        self.first = first = self.shards.shard(0, 1)
        """The only shard, where there is one."""
        self.evaluation, self.checkpoints, self.outbox = first.evaluation, first.checkpoints, first.outbox

    def ping(self) -> None:
        """Raises StoreError while Redis does not answer."""
        self._connection.read("PING")

    def settle_on_disk(self) -> bool:
        """Wait until what was applied so far is on Redis' disk; False where it is not within the time-out.

        True at once where the server has no append-only file, or has no WAITAOF (before 7.2), and in a cluster.

        Raises:
            StoreError: Redis does not answer.
        """
        if not self._wait_aof_ms:
            return True
        # The file is written in order: when a write made now is on disk, so is all before it, whichever
        # connection it came over. WAITAOF alone would wait for the writes of its own connection.
        mark = (self._monitor_keys.key("settled"), "1", "EX", 60)
        try:
            _, (local, _) = self._connection.read_many([("SET", *mark), ("WAITAOF", 1, 0, self._wait_aof_ms)])
        except ResponseError as error:  # no result is kept: after a failover another server answers
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
    store = Store(connection, monitor, limits or Limits(), wait_ms)
    try:
        store.evaluation.check_schema()
    except BaseException:
        store.close()
        raise
    return store
