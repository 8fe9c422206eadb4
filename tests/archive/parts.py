"""Archives for tests: drawn pictures as folders, tar files and Parquet files, and what scoring gives of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tests.pictures import encoded, pictures


def drawn(seed: int, count: int, stripes: bool = False) -> dict[str, bytes]:
    """{name: PNG}."""
    return {f"{name}.png": encoded(image) for name, image in pictures(seed, count, stripes)}


def folder_of(path: Path, files: Mapping[str, bytes]) -> Path:
    """A folder with these files."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tar_of(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    """A tar file with these members, written at 1,000,000 s."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1_000_000
            archive.addfile(member, io.BytesIO(content))
    return path


def parquet_of(path: Path, rows: Iterable[Mapping[str, Any]], group: int = 10) -> Path:
    """A Parquet file of these rows."""
    parquet.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=group)
    return path


def sample(key: str, image: bytes, fields: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of one WebDataset sample."""
    return {f"{key}.png": image, f"{key}.json": json.dumps(fields).encode()}
