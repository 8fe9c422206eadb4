"""The state in Redis: cursors and counts per partition, alerts and their outbox per monitor; see `Store`.

Nothing outside this package knows Redis. Every change is one script in `monitor/store/lua/`, so it happens whole or not
at all; every method may raise StoreError, after which the same call can be made again.
"""

from monitor.store.connection import StoreConfigError, StoreError
from monitor.store.evaluation import EvaluatorState
from monitor.store.partitions import OTHER_STREAM, Claim, ClaimStatus, Limits
from monitor.store.store import Store, open_store

__all__ = [
    "OTHER_STREAM",
    "Claim",
    "ClaimStatus",
    "EvaluatorState",
    "Limits",
    "Store",
    "StoreConfigError",
    "StoreError",
    "open_store",
]
