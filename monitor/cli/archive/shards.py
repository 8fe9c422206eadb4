"""The shards of an archive: what one worker reads at a time, and what a rerun skips when it is finished.

The same inputs always give the same shards: a chunk of the files of a folder in the order of their names, a tar file
(a local one that is not compressed is cut into chunks, too), or consecutive row groups of a Parquet file.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import blake2b
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, Literal

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from detectors.images.reading import SUFFIXES, InputError

SHARD_IMAGES = 1000
"""Seconds of a core: little is lost with a worker, and ten million images make ten thousand files of results."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
FOOTERS_AT_ONCE = 16

Info = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shard:
    """What one worker reads at a time.

    root: URI of the folder, tar file or Parquet file. names: of a folder, the paths within it. span: of a tar file
    (offset of the first member, members), (0, 0) for the whole; of a Parquet file [first, end) of its row groups.
    first_row: of a Parquet file, of the first row group. modified_ms: of the tar or Parquet file, 0 where unknown.
    times: of the files, likewise. digest: of what the store says about the content: names, sizes, times.
    """

    kind: Literal["files", "tar", "parquet"]
    root: str
    digest: str
    names: tuple[str, ...] = ()
    times: tuple[int, ...] = ()
    span: tuple[int, int] = (0, 0)
    first_row: int = 0
    modified_ms: int = 0

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """Of its fields as JSON."""
        fields: dict[str, Any] = json.loads(text)
        tuples: dict[str, Any] = {name: tuple(fields[name]) for name in ("names", "times", "span")}
        return cls(**{**fields, **tuples})

    @property
    def label(self) -> str:
        """For error messages."""
        if self.kind == "files":
            return f"{self.root}: {self.names[0]} and {len(self.names) - 1} more"
        return self.root

    def facts(self) -> dict[str, Any]:
        """As the manifest has it: without the names, which would make it as long as the archive has files."""
        found = asdict(self)
        return {name: found[name] for name in ("kind", "root", "digest", "span")} | {"files": len(self.names)}


def shards_of(
    uris: Sequence[str], shard_images: int = SHARD_IMAGES, progress: Callable[[str], None] = lambda _: None
) -> list[Shard]:
    """The shards of all inputs, in their order.

    Args:
        uris: folders, tar files, Parquet files and images, as paths or as URIs that fsspec knows; `*` is a wildcard.
        progress: called with what is being listed.

    Raises:
        InputError: an input does not exist, cannot be read, or holds no images.
    """
    found: list[Shard] = []
    for uri in uris:
        progress(f"listing {uri}")
        try:
            fs, path = url_to_fs(uri)
            matches = sorted(fs.glob(path)) if "*" in path else [path]
            before = len(found)
            for match in matches:
                found.extend(_shards_at(fs, match, shard_images))
        except (ImportError, ValueError) as error:  # no such protocol, or its package is not installed
            raise InputError(f"{uri}: {error}") from error
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"{uri}: cannot be read: {str(error) or type(error).__name__}") from error
        if len(found) == before:
            raise InputError(f"{uri}: no images, tar files or Parquet files in it")
    return found


def is_tar(name: str) -> bool:
    """By its name."""
    return name.lower().endswith(TAR_SUFFIXES)


def is_image(name: str) -> bool:
    """By its name."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def sample_of(name: str) -> str:
    """What the files of one WebDataset sample have in common: the path up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".")[0]


def modified_ms(info: Info) -> int:
    """When a file was written, by its store; 0 where that is not known."""
    for name in ("mtime", "LastModified", "last_modified", "updated"):
        at = info.get(name)
        if isinstance(at, datetime):
            return round(at.timestamp() * 1000)
        if isinstance(at, int | float):
            return round(at * 1000)
        if isinstance(at, str):
            return round(datetime.fromisoformat(at).timestamp() * 1000)
    return 0


def _shards_at(fs: AbstractFileSystem, path: str, shard_images: int) -> Iterator[Shard]:
    if not fs.isdir(path):
        root, _, name = path.rpartition("/")
        yield from _of_files(fs, root, {name: fs.info(path)}, shard_images)
        return
    root = path.rstrip("/")
    listed = fs.find(path, detail=True)
    # by the parts of the path, as `layerwatch score` sorts them
    names = sorted((name[len(root) :].lstrip("/") for name in listed), key=lambda name: name.split("/"))
    by_name = {name[len(root) :].lstrip("/"): info for name, info in listed.items()}
    yield from _of_files(fs, root, {name: by_name[name] for name in names}, shard_images)


def _of_files(fs: AbstractFileSystem, root: str, infos: Mapping[str, Info], shard_images: int) -> Iterator[Shard]:
    images = [name for name in infos if is_image(name)]
    for start in range(0, len(images), shard_images):
        names = tuple(images[start : start + shard_images])
        times = tuple(modified_ms(infos[name]) for name in names)
        digest = _digest((name, infos[name]) for name in names)
        yield Shard("files", fs.unstrip_protocol(root), digest, names, times)
    for name in filter(is_tar, infos):
        yield from _of_tar(fs, f"{root}/{name}", infos[name], shard_images)
    tables = [name for name in infos if name.endswith(".parquet")]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        for shards in pool.map(lambda name: list(_of_parquet(fs, f"{root}/{name}", infos[name], shard_images)), tables):
            yield from shards


def _of_tar(fs: AbstractFileSystem, path: str, info: Info, shard_images: int) -> Iterator[Shard]:
    uri, digest, at_ms = fs.unstrip_protocol(path), _digest([(path, info)]), modified_ms(info)
    # elsewhere a look at all headers would read the whole file
    if not (path.endswith(".tar") and "local" in _protocols(fs)):
        yield Shard("tar", uri, digest, modified_ms=at_ms)
        return
    offset, members, images = -1, 0, 0
    with tarfile.open(path, "r:") as archive:
        for _, sample in groupby(archive, key=lambda member: sample_of(member.name)):
            for member in sample:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                offset = member.offset if members == 0 else offset
                members, images = members + 1, images + (member.isfile() and is_image(member.name))
            if images >= shard_images:
                yield Shard("tar", uri, digest, span=(offset, members), modified_ms=at_ms)
                members, images = 0, 0
    if images:
        yield Shard("tar", uri, digest, span=(offset, members), modified_ms=at_ms)


def _of_parquet(fs: AbstractFileSystem, path: str, info: Info, shard_images: int) -> Iterator[Shard]:
    from pyarrow import ArrowInvalid, parquet  # noqa: PLC0415 - of the extra

    try:
        with fs.open(path) as file:
            footer = parquet.ParquetFile(file).metadata
    except ArrowInvalid as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error
    uri, digest, at_ms = fs.unstrip_protocol(path), _digest([(path, info)]), modified_ms(info)
    first, first_row, rows, row = 0, 0, 0, 0
    for group in range(footer.num_row_groups):
        rows, row = rows + footer.row_group(group).num_rows, row + footer.row_group(group).num_rows
        if rows >= shard_images or group + 1 == footer.num_row_groups:
            yield Shard("parquet", uri, digest, span=(first, group + 1), first_row=first_row, modified_ms=at_ms)
            first, first_row, rows = group + 1, row, 0


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _digest(files: Iterable[tuple[str, Info]]) -> str:
    digest = blake2b(digest_size=8)
    for name, info in files:
        digest.update(f"{name}\0{info.get('size')}\0{info.get('ETag') or modified_ms(info)}\n".encode())
    return digest.hexdigest()
