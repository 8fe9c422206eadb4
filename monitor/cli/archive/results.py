"""The results of an archive: a folder with one Parquet file per shard, and a manifest that says of what they are.

A file appears whole or not at all, so a finished shard is one whose file exists. Nothing else is kept: a rerun compares
the manifest and goes on with the shards that have no file.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from detectors.images.reading import InputError
from monitor.cli.archive.shards import Shard

if TYPE_CHECKING:
    import pyarrow

VERSION = 1
MANIFEST = "archive.json"
PART = "part-{:06d}.parquet"

_MEANING = {
    "kind": "of another kind",
    "profile": "of another profile",
    "condition": "of another condition",
    "engine": "of another engine",
    "backbone": "of another backbone",
    "naming": "with streams and times named otherwise",
    "shard_images": "in shards of another size",
    "inputs": "of other inputs",
    "shards": "of inputs that have changed since",
}


class Results:
    """A folder of results, local or in an object store."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._fs, path = url_to_fs(uri)
        self._root = path.rstrip("/")
        self._local = "local" in ([self._fs.protocol] if isinstance(self._fs.protocol, str) else self._fs.protocol)

    def begin(self, facts: Mapping[str, Any], shards: Sequence[Shard]) -> dict[str, Any]:
        """Write the manifest, or check that the one that is there says the same; returns it.

        Raises:
            InputError: the folder holds other results, or files that are none.
        """
        manifest = {"version": VERSION, **facts, "shards": [shard.facts() for shard in shards]}
        manifest = dict(json.loads(json.dumps(manifest)))
        if self._fs.exists(f"{self._root}/{MANIFEST}"):
            before = self.manifest()
            for name, meaning in _MEANING.items():
                if before.get(name) != manifest.get(name):
                    said = before.get(name), manifest.get(name)
                    what = f" ({said[0]}, this is {said[1]})" if all(isinstance(each, str) for each in said) else ""
                    raise InputError(f"{self.uri}: holds results {meaning}{what}; give another folder with -o")
            return dict(before)
        if self._names():
            raise InputError(f"{self.uri}: is not empty, and holds no {MANIFEST}; give another folder with -o")
        self._write(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        return manifest

    def manifest(self) -> dict[str, Any]:
        """What the results are of.

        Raises:
            InputError: there are none, or of another version.
        """
        path = f"{self._root}/{MANIFEST}"
        try:
            found: dict[str, Any] = json.loads(self._fs.cat_file(path))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.uri}/{MANIFEST}: cannot be read: {error}") from error
        if found.get("version") != VERSION:
            raise InputError(
                f"{self.uri}/{MANIFEST}: version {found.get('version')!r}; this program reads version {VERSION}"
            )
        return found

    def finished(self) -> set[int]:
        """Numbers of the shards whose results are there."""
        names = {name for name in self._names() if name.startswith("part-") and name.endswith(".parquet")}
        return {int(name[len("part-") : -len(".parquet")]) for name in names}

    def has(self, name: str) -> bool:
        """Whether a file lies there."""
        return bool(self._fs.exists(f"{self._root}/{name}"))

    def get(self, name: str) -> bytes:
        """The content of a file."""
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def put(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; a local one is renamed when it is written, as an object store does it."""
        self._write(name, content)

    def write(self, number: int, table: pyarrow.Table) -> None:
        """Write the results of one shard; a second writer of the same shard writes the same."""
        from pyarrow import parquet  # noqa: PLC0415 - of the extra

        buffer = io.BytesIO()
        parquet.write_table(table, buffer, compression="zstd")
        self._write(PART.format(number), buffer.getvalue())

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pyarrow.Table]:
        """The results of the finished shards in their order, one table each.

        Raises:
            InputError: a file is damaged.
        """
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - of the extra

        for number in sorted(self.finished()):
            path = f"{self._root}/{PART.format(number)}"
            try:
                with self._fs.open(path) as file:
                    yield parquet.read_table(file, columns=columns)
            except (OSError, ArrowException) as error:
                raise InputError(f"{path}: cannot be read: {error}") from error

    def _names(self) -> list[str]:
        with suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            names = [str(path).rpartition("/")[2] for path in self._fs.ls(self._root, detail=False)]
            return [name for name in names if name and not name.startswith(".")]
        return []

    def _write(self, name: str, content: bytes) -> None:
        """A local file is renamed when it is whole; an object store shows an object only then."""
        if not self._local:
            self._fs.pipe_file(f"{self._root}/{name}", content)
            return
        os.makedirs(self._root, exist_ok=True)
        temporary = f"{self._root}/.{name}.{os.getpid()}.tmp"
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, f"{self._root}/{name}")
