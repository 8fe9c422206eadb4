"""Sources of records: one package per broker behind the protocols `Source` and `Producer`.

No other code imports a broker's client. `SOURCES` lists the kinds; docs/how-to/add-a-source.md adds one.
"""

from __future__ import annotations

from typing import Any

from monitor.sources.kafka import KAFKA
from monitor.sources.protocol import Producer, Source, SourceKind, SourceSection, SourceSettings
from monitor.sources.redis_streams import REDIS_STREAM

SOURCES: dict[str, SourceKind[Any]] = {"kafka": KAFKA, "redis-stream": REDIS_STREAM}
"""The kinds of source by their name in the configuration key `source`."""


def open_source(settings: SourceSettings[SourceSection]) -> Source:
    """Connect to the source and join its group.

    Raises:
        SourceError: it cannot be reached now; try again.
        FatalSourceError: it cannot work with this configuration.
    """
    return SOURCES[settings.kind].open_source(settings)


def open_producer(settings: SourceSettings[SourceSection]) -> Producer:
    """A producer for the source's broker; it connects on first use."""
    return SOURCES[settings.kind].open_producer(settings)


__all__ = [
    "SOURCES",
    "Producer",
    "Source",
    "SourceKind",
    "SourceSection",
    "SourceSettings",
    "open_producer",
    "open_source",
]
