"""Creates silences, for the command line and the web alike."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from monitor.core.silences import Silence, to_json
from monitor.store import Store
from monitor.telemetry.clock import wall_ms

KEPT_AFTER_END_MS = 7 * 86_400_000
"""An ended silence is listed for a week, so that people can see who silenced what."""


def create_silence(
    store: Store, matchers: Mapping[str, str], duration_s: float, author: str, comment: str, known: Iterable[Silence]
) -> Silence:
    """Store a silence, in force from now.

    Args:
        matchers: as in `Silence`; checked by the caller.
        known: the stored silences; those that ended more than a week ago are removed.

    Raises:
        StoreError: Redis does not answer.
    """
    now_ms = wall_ms()
    silence = Silence(uuid.uuid4().hex[:12], matchers, now_ms, now_ms + round(1000 * duration_s), author, comment)
    store.silences.put(silence.id, to_json(silence))
    for old in known:
        if old.ends_ms < now_ms - KEPT_AFTER_END_MS:
            store.silences.remove(old.id)
    return silence
