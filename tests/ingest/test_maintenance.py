"""The consumer's periodic work, on a real Redis and a real source."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.core.types import ApplyStatus, Delta, Partition
from monitor.ingest.maintenance import STREAMS_QUIET_S, Maintenance
from monitor.ingest.sinks import Sinks
from monitor.ingest.work import OwnedPartition
from monitor.notify.self_alerts import STREAMS, SelfAlerts
from monitor.sources import open_source
from monitor.store import Limits, open_store
from monitor.store.private_server import PrivateRedis
from tests.ingest.parts import one_partition


class CountedAlerts(SelfAlerts):
    """Counts how often an alert is raised, and logged with it."""

    raised = 0

    def raise_alert(self, rule: str, subject: str, summary: str, status_url: str = "") -> None:
        self.raised += 1
        super().raise_alert(rule, subject, summary, status_url)


@pytest.mark.parametrize("has_receivers", [True, False])
def test_the_alert_about_too_many_streams_is_raised_once_and_where_redis_has_lost_it_and_ends_when_none_comes(
    redis_server: PrivateRedis, has_receivers: bool
) -> None:
    name = f"maintenance-{has_receivers}"
    settings = one_partition(name, redis_server.url)
    partition = Partition(name, 0)
    store, source = open_store(settings.redis, name, Limits(max_streams=1)), open_source(settings.source_settings())
    store.partitions.claim(partition, 1, "a")
    store.partitions.start(partition, 1, "a", 0)
    one = np.array([1, *[0] * 8, 1, 0, 0, 0, 0, 1], dtype=np.uint32)
    store.partitions.apply([Delta(partition, "a", 0, 2, 1, {("fp", 0, "cam-1"): one, ("fp", 0, "cam-2"): one})])
    owned = {partition: OwnedPartition(partition, "a", 2, 1)}
    alerts = CountedAlerts(store, name, has_receivers)
    maintenance = Maintenance(store, alerts, Sinks(None, alerts), lambda: None, 60, 60)

    def register() -> int:
        """How often the alert has been raised after it."""
        maintenance.after_claim()
        assert maintenance.run(source, owned, in_flight=False, paused=True)
        assert set(store.outbox.self_alerts()) == ({f"{STREAMS} streams"} if has_receivers else set())
        return alerts.raised

    assert [register() for _ in range(3)] == [1, 1, 1]
    store._connection.client.delete(f"{store._monitor_keys.key('outbox')}:own")  # as a server that fell back
    assert [register() for _ in range(2)] == [1 + has_receivers] * 2
    cursor = store.counts._keys.of(partition, "cursor")
    store._connection.client.hincrby(cursor, "over_limit_ms", -1000 * round(STREAMS_QUIET_S))
    maintenance.after_claim()
    maintenance.run(source, owned, in_flight=False, paused=True)
    assert store.outbox.self_alerts() == {}
    beyond = {("fp", 0, "cam-2"): one}
    assert store.partitions.apply([Delta(partition, "a", 2, 3, 1, beyond)])[0].status is ApplyStatus.OK
    assert [register() for _ in range(2)] == [2 + has_receivers] * 2
    source.close()
    store.close()
