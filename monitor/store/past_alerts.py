"""Which alerts were under way and are no more, for 90 days of event time: longer than the alerts are kept.

Each shard has its own, in a sorted set by their ends; every decision adds to it (decide.lua). Its state says since when
none is missing: a decision of a version that does not note them begins that anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from monitor.core.types import PastAlert
from monitor.store.keyspace import TTL_S

PAST_ALERTS = "alerts:past"
"""Name of the sorted set."""
KEPT_MS = 1000 * TTL_S
LIMIT = 100_000
"""Of a shard, the newest: some 20 MB."""
SINCE_FIELD = "past_since"
"""Of the state of a shard, as `past_bucket`: the bucket decided last by a version that notes what ended."""


@dataclass(frozen=True, slots=True)
class PastAlerts:
    """Which alerts were under way, as far as is known."""

    alerts: Sequence[PastAlert]
    known_since_ms: int | None
    """In event time: what was under way before is not known. None where nothing was decided yet."""


def packed(alert: PastAlert) -> str:
    """The alert as a member of the set."""
    return json.dumps(astuple(alert), ensure_ascii=False)


def unpacked(member: bytes) -> PastAlert:
    """Inverse of `packed`."""
    return PastAlert(*json.loads(member))


def joined(shards: Iterable[tuple[bytes | None, Sequence[bytes]]]) -> PastAlerts:
    """What several shards hold: of each the field SINCE_FIELD of its state, and its members, oldest first."""
    found: list[PastAlert] = []
    known: list[int | None] = []
    for since, members in shards:
        alerts = [unpacked(member) for member in members]
        found += alerts
        known.append(None if since is None else int(since))
        if len(alerts) >= LIMIT:
            known.append(alerts[0].until_ms)  # older ones may have been cut off
    sure = [at for at in known if at is not None]
    return PastAlerts(found, max(sure) if sure and len(sure) == len(known) else None)
