"""From the images of a shard to the table of its results: what a worker does, without knowing of Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors.images.decode import ImageError, is_deep
from detectors.images.likeness import hashes_of
from detectors.images.prepare import Prepared, Preparer
from monitor.cli.archive.reading import Item

if TYPE_CHECKING:  # torch takes seconds to load
    from detectors import Profile
    from detectors.profile.backbone import Backbone

P_VALUE = "_p"
"""Ends the name of the column with the p-values of a signal; its values are in the column of its own name."""
ABOUT = (
    ("id", pa.string()),
    ("source", pa.dictionary(pa.int32(), pa.string())),
    ("stream", pa.dictionary(pa.int32(), pa.string())),
    ("event_time", pa.timestamp("ms", "UTC")),
    ("reason", pa.dictionary(pa.int32(), pa.string())),
    ("error", pa.string()),
    ("shape", pa.dictionary(pa.int32(), pa.string())),
    ("digest", pa.binary(16)),
)
"""The columns about an image; `shape` is 640x480/RGB. One that cannot be used has a `reason`, and no digest."""

Floats = NDArray[Any]


Prepare = Callable[[bytes, bytes], Prepared]
"""From encoded bytes and a key."""


class Measure(Protocol):
    """What is computed of prepared images: scores, or features."""

    preparer: Prepare
    batch: int
    fields: list[pa.Field]

    def __call__(self, images: Sequence[Prepared], /) -> list[pa.Array]:
        """One array per field, of 1 to `batch` images."""


class Scoring:
    """The value and the p-value of each signal of a profile."""

    def __init__(self, profile: Profile) -> None:
        from detectors.profile.steady import BATCH  # noqa: PLC0415 - torch

        self._profile, self.batch = profile, BATCH
        self.preparer: Prepare = profile.preparer
        names = [*profile.signals, *(signal + P_VALUE for signal in profile.signals)]
        self.fields = [pa.field(name, pa.float64()) for name in names]

    def __call__(self, images: Sequence[Prepared]) -> list[pa.Array]:
        """See `Measure`; those of `layerwatch score`, bit for bit."""
        from detectors.profile.steady import steady_scores  # noqa: PLC0415 - torch

        scores = steady_scores(self._profile, images)
        return [pa.array(column) for column in np.concatenate([scores.values, scores.p_values], axis=1).T]


class Features:
    """What a fit learns from of each image: features, image properties, and the fingerprint of its likeness."""

    def __init__(self, backbone: Backbone, preparer: Preparer) -> None:
        from detectors.images.properties import NAMES  # noqa: PLC0415 - beside the backbone
        from detectors.profile.steady import BATCH  # noqa: PLC0415 - torch

        self._backbone, self.batch = backbone, BATCH
        self.preparer: Prepare = partial(_of_eight_bits, preparer)
        self.fields = [
            pa.field("features", pa.list_(pa.float32(), sum(backbone.layers))),
            pa.field("properties", pa.list_(pa.float64(), len(NAMES))),
            pa.field("likeness", pa.list_(pa.uint64(), 4)),
            pa.field("notes", pa.list_(pa.string())),
        ]

    def __call__(self, images: Sequence[Prepared]) -> list[pa.Array]:
        """See `Measure`."""
        from detectors.profile.steady import steady_features  # noqa: PLC0415 - torch

        pixels = [image.pixels for image in images]
        rows = (
            steady_features(self._backbone, np.stack(pixels)).numpy(),
            np.stack([image.properties for image in images]),
            hashes_of(pixels),
        )
        arrays = [pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), found.shape[1]) for found in rows]
        return [*arrays, pa.array([list(image.notes) for image in images], self.fields[-1].type)]


def _of_eight_bits(preparer: Preparer, image: bytes, key: bytes) -> Prepared:
    if is_deep(image):
        text = "16 bits: a fit learns their white level from all images together; give it the images themselves"
        raise ImageError("depth", text)
    return preparer(image, key)


@dataclass(frozen=True, slots=True)
class _Refused:
    reason: str
    error: str


class ShardTable:
    """Makes the table of a shard; `threads` decode ahead of the network."""

    def __init__(self, measure: Measure, threads: int = 1) -> None:
        self._measure = measure
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    @property
    def schema(self) -> pa.Schema:
        """Of every table."""
        return pa.schema([*(pa.field(*each) for each in ABOUT), *self._measure.fields])

    def __call__(self, items: Iterable[Item]) -> pa.Table:
        """One row per image, in their order."""
        about: list[tuple[Item, Prepared | _Refused]] = []
        parts: list[list[pa.Array]] = []
        waiting: list[Prepared] = []
        for item, found in self._prepared(items):
            if isinstance(found, Prepared):
                waiting.append(found)
            about.append((item, _without_pixels(found) if isinstance(found, Prepared) else found))
            if len(waiting) == self._measure.batch:
                parts.append(self._measure(waiting))
                waiting = []
        if waiting:
            parts.append(self._measure(waiting))
        usable = [isinstance(found, Prepared) for _, found in about]
        # null where an image is refused: `take` with a null index gives a null
        places = pa.array(np.cumsum(usable) - 1, mask=~np.array(usable, dtype=bool))
        columns = [
            pa.chunked_array([part[i] for part in parts], field.type).combine_chunks().take(places)
            for i, field in enumerate(self._measure.fields)
        ]
        return pa.Table.from_arrays([*_about(about), *columns], schema=self.schema)

    def _prepared(self, items: Iterable[Item]) -> Iterator[tuple[Item, Prepared | _Refused]]:
        if self._pool is None:
            yield from ((item, self._prepare(item)) for item in items)
            return
        source = iter(items)
        ahead: list[tuple[Item, Any]] = []
        while batch := list(islice(source, self._measure.batch)):
            submitted = [(item, self._pool.submit(self._prepare, item)) for item in batch]
            yield from ((item, future.result()) for item, future in ahead)
            ahead = submitted
        yield from ((item, future.result()) for item, future in ahead)

    def _prepare(self, item: Item) -> Prepared | _Refused:
        if item.reason:
            return _Refused(item.reason, item.error)
        try:
            return self._measure.preparer(item.image, item.id.encode("utf-8", "backslashreplace"))
        except ImageError as error:
            return _Refused(error.code, str(error))


def _about(rows: Sequence[tuple[Item, Prepared | _Refused]]) -> list[pa.Array]:
    def of(value: Callable[[Item, Any], Any], kind: type) -> list[Any]:
        return [value(item, found) if isinstance(found, kind) else None for item, found in rows]

    columns = [
        [item.id.encode("utf-8", "backslashreplace").decode() for item, _ in rows],
        [item.source for item, _ in rows],
        [item.stream for item, _ in rows],
        [item.event_time_ms for item, _ in rows],
        of(lambda _, found: found.reason, _Refused),
        of(lambda _, found: found.error, _Refused),
        of(lambda _, found: f"{found.width}x{found.height}/{found.mode}", Prepared),
        of(lambda _, found: found.digest, Prepared),
    ]
    return [pa.array(column, type_) for column, (_, type_) in zip(columns, ABOUT, strict=True)]


def _without_pixels(image: Prepared) -> Prepared:
    """What the table says about it: the pixels of a whole shard would be held until its end."""
    return Prepared(
        np.empty((0, 0, 3), np.uint8), image.properties, image.digest, image.key, image.width, image.height, image.mode
    )
