"""What `archive features` has written, for a fit: the same profile as a fit of the same images in the same order.

Beside its features a fit needs pixels of a few images: of up to 600 with the smallest digests, which it turns, pastes
into each other and shows as examples, and of up to 600 in even steps for the heat maps. Which these are is known when
all shards are finished, so they are read a second time, and kept beside the features: a fit needs the source no more.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from detectors.images.prepare import Preparer
from detectors.images.reading import InputError
from detectors.profile.backbone import Backbone
from detectors.profile.places import LocalSample, sampled_rows
from detectors.profile.reference import Progress, Reference, digest_number, hash_of, turnable_images
from detectors.profile.spec import BackboneSpec
from monitor.cli.archive.reading import Naming, read_shard
from monitor.cli.archive.results import Results
from monitor.cli.archive.shards import Shard

PICTURES = "pictures.parquet"
READERS = 8
Pixels = NDArray[np.uint8]


@dataclass
class _Usable:
    """The images of all shards that a fit uses, in their order; `places` are (shard, row)."""

    places: list[tuple[int, int]] = field(default_factory=list)
    digests: dict[bytes, None] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)

    def add(self, number: int, table: pa.Table) -> list[int]:
        """Take up the images of a shard; returns the rows that are used."""
        before = len(self.places)
        columns = (table[name].to_pylist() for name in ("id", "reason", "error", "digest"))
        for row, (name, reason, error, digest) in enumerate(zip(*columns, strict=True)):
            if reason is not None:
                self.broken.append(f"{name}: {error}")
            elif digest in self.digests:
                self.duplicates.append(name)
            else:
                self.digests[digest] = None
                self.places.append((number, row))
        return [row for _, row in self.places[before:]]

    def turnable(self, shape: tuple[int, int]) -> list[int]:
        """The images whose pixels a fit keeps, as it chooses them."""
        numbers = np.array([digest_number(digest) for digest in self.digests], dtype=np.uint64)
        return sorted(np.argsort(numbers, kind="stable")[: turnable_images(shape)].tolist())


def keep_pictures(
    results: Results, shards: Sequence[Shard], naming: Naming, preparer: Preparer, progress: Callable[[float], None]
) -> None:
    """Read the images again of which a fit needs the pixels, and write them beside the features, unless they are there.

    Raises:
        InputError, OSError: a shard can be read no more.
    """
    if results.has(PICTURES):
        return
    usable = _Usable()
    for number, table in enumerate(results.tables(["id", "reason", "error", "digest"])):
        usable.add(number, table)
    chosen = sorted({*usable.turnable(preparer.shape), *sampled_rows(len(usable.places), preparer.shape)})
    wanted: dict[int, list[int]] = {}
    for image in chosen:
        number, row = usable.places[image]
        wanted.setdefault(number, []).append(row)

    def read(number: int) -> list[tuple[int, int, bytes]]:
        rows = set(wanted[number])
        found = ((row, item) for row, item in enumerate(read_shard(shards[number], naming)) if row in rows)
        return [(number, row, preparer(item.image, item.id.encode()).pixels.tobytes()) for row, item in found]

    rows: list[tuple[int, int, bytes]] = []
    with ThreadPoolExecutor(READERS) as pool:
        for done, found in enumerate(pool.map(read, wanted)):
            rows += found
            progress((done + 1) / len(wanted))
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(("shard", "row", "pixels"))})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    results.put(PICTURES, buffer.getvalue())


class StoredFeatures:
    """Features in a folder, for `detectors.fit_profile`, which calls it.

    Raises:
        InputError: there are none, or they are not finished.
    """

    def __init__(self, uri: str) -> None:
        self._results = Results(uri)
        self._manifest = self._results.manifest()
        if self._manifest["kind"] != "features":
            raise InputError(f"{uri}: holds {self._manifest['kind']}, not features")
        missing = len(self._manifest["shards"]) - len(self._results.finished())
        if missing or not self._results.has(PICTURES):
            raise InputError(f"{uri}: is not finished ({missing} shards are missing): give `archive features` again")

    @property
    def spec(self) -> BackboneSpec:
        """Of the backbone whose features these are."""
        return BackboneSpec.from_json(self._manifest["spec"])

    def __call__(self, backbone: Backbone, progress: Progress, local: LocalSample | None) -> Reference:
        """See `detectors.profile.fit.Read`.

        Raises:
            InputError: of another backbone, or not on these grids.
        """
        columns = self._columns(backbone)
        reference, usable = Reference.of([]), _Usable()
        parts, hashes = [], [reference.hashes]
        for number, table in enumerate(self._results.tables()):
            used = table.take(usable.add(number, table))
            parts.append(_matrix(used, "features")[:, columns])
            hashes.append(_matrix(used, "likeness"))
            reference.measured += list(_matrix(used, "properties"))
            reference.keys += [name.encode("utf-8", "backslashreplace") for name in used["id"].to_pylist()]
            reference.notes.update(note for notes in used["notes"].to_pylist() for note in notes)
            progress(f"features of {len(reference)} images", -1.0)
        reference.features, reference.hashes = Reference.of(parts).features, np.concatenate(hashes)
        reference.broken, reference.duplicates = usable.broken, usable.duplicates
        reference.hash = hash_of(usable.digests)
        pixels = self._pictures(backbone.shape)
        reference.turnable = {row: pixels[usable.places[row]] for row in usable.turnable(backbone.shape)}
        if local is None:
            return reference
        rows = sampled_rows(len(reference), backbone.shape)
        local.show({row: pixels[usable.places[row]] for row in rows}, backbone)
        return reference

    def _columns(self, backbone: Backbone) -> NDArray[np.intp]:
        if backbone.digest != self._manifest["digest"]:
            raise InputError(f"{self._results.uri}: has features of another backbone")
        stored = backbone.on_grids(*self._manifest["grids"])
        if unknown := set(backbone.grids) - set(stored.grids):
            known = ", ".join(map(str, stored.grids))
            raise InputError(f"{self._results.uri}: has no features on the grid {min(unknown)} (it has {known})")
        whole = np.arange(sum(stored.layers))
        return np.concatenate([whole[stored.columns(grid)] for grid in backbone.grids])

    def _pictures(self, shape: tuple[int, int]) -> dict[tuple[int, int], Pixels]:
        table = parquet.read_table(pa.BufferReader(self._results.get(PICTURES)))
        columns = (table[name].to_pylist() for name in ("shard", "row", "pixels"))
        return {
            (number, row): np.frombuffer(pixels, np.uint8).reshape(*shape, 3)
            for number, row, pixels in zip(*columns, strict=True)
        }


def _matrix(table: pa.Table, name: str) -> NDArray[Any]:
    """A column of lists of one length as (N, length)."""
    column = table[name].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)
