"""What one kind of source consists of, and what a source or producer of that kind is opened with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from monitor.core.settings import Names
from monitor.sources.protocol import Producer, Source
from monitor.store.settings import RedisSettings


class SourceSection(Protocol):
    """What the configuration section of every kind has."""

    topics: Names
    dead_letter_topic: str
    start: Literal["earliest", "latest"]
    """Where a group without a cursor begins."""


S = TypeVar("S", bound=SourceSection)
S_co = TypeVar("S_co", bound=SourceSection, covariant=True)


@dataclass(frozen=True, slots=True)
class SourceSettings(Generic[S_co]):
    """What a source or a producer is opened with; `Config.source_settings` gives it."""

    kind: str
    """A key of `monitor.sources.SOURCES`."""
    section: S_co
    monitor: str
    """The monitor's name: the consumer group, where the section has no name for it."""
    redis: RedisSettings
    """The Redis of the state."""
    group_suffix: str = ""
    """Appended to the name of the consumer group."""


@dataclass(frozen=True, slots=True)
class SourceKind(Generic[S]):
    """One kind of source: its section of the configuration, and how it is opened.

    The two functions import the broker's client themselves, so that only the client in use is loaded.
    """

    section: str
    """Name of the section in `Config`."""
    settings: type[S]
    open_source: Callable[[SourceSettings[S]], Source]
    open_producer: Callable[[SourceSettings[S]], Producer]
