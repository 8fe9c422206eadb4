"""Which value holds for which stream. Decoder processes import this: it loads no store, no profile and nothing slow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from detectors.images.prepare import Preparer

T = TypeVar("T")


@dataclass(frozen=True)
class ByStream(Generic[T]):
    """One value per stream: that of the first glob in `overrides` that matches its name, else the default."""

    default: T
    overrides: tuple[tuple[str, T], ...] = ()

    def of(self, stream: str) -> T:
        """The value of a stream."""
        return next((value for glob, value in self.overrides if fnmatchcase(stream, glob)), self.default)

    def entries(self) -> Iterator[tuple[str, T]]:
        """(glob, value) in the order in which they are tried."""
        yield from self.overrides
        yield "*", self.default

    def all(self) -> list[T]:
        """Every value: the default first."""
        return [self.default, *(value for _, value in self.overrides)]


Preparers = ByStream[Preparer]
"""What decoding needs of the profiles; picklable."""
