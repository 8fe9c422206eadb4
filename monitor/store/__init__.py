"""The state in Redis: cursors and counts per partition, alerts and their outbox per monitor; see `Store`.

Nothing outside this package and the Redis Streams source knows Redis. Every change is one script in
`monitor/store/lua/`, so it happens whole or not at all; every method may raise StoreError, after which the same call
can be made again.

Names are imported on first use: what reads only the settings does not wait for the client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monitor.store.client import check_client
    from monitor.store.connection import StoreConfigError, StoreError
    from monitor.store.evaluation import EvaluatorState, Kept, Sealed
    from monitor.store.limits import Limits
    from monitor.store.partitions import GONE_STREAM, OTHER_STREAM, Claim, ClaimStatus
    from monitor.store.shards import Shard
    from monitor.store.state import Store, open_store

_HOMES = {
    "client": ("check_client",),
    "connection": ("StoreConfigError", "StoreError"),
    "evaluation": ("EvaluatorState", "Kept", "Sealed"),
    "limits": ("Limits",),
    "partitions": ("GONE_STREAM", "OTHER_STREAM", "Claim", "ClaimStatus"),
    "shards": ("Shard",),
    "state": ("Store", "open_store"),
}
__all__ = [
    "GONE_STREAM",
    "OTHER_STREAM",
    "Claim",
    "ClaimStatus",
    "EvaluatorState",
    "Kept",
    "Limits",
    "Sealed",
    "Shard",
    "Store",
    "StoreConfigError",
    "StoreError",
    "check_client",
    "open_store",
]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"monitor.store.{home}"), name)
    raise AttributeError(f"module 'monitor.store' has no attribute {name!r}")
