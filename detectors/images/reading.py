"""Image inputs of the command line: folders, tar files and single files, read one image at a time."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}


class InputError(ValueError):
    """An input does not exist or holds no image; the message names it."""


def read_images(inputs: Sequence[str | Path]) -> Iterator[tuple[str, bytes]]:
    """(name, encoded bytes) of every image, in the order of the inputs and by name within a folder.

    Raises:
        InputError: an input is missing, unreadable, or holds no image.
    """
    for item in inputs:
        path = Path(item)
        found = 0
        for name, image in _read_one(path):
            found += 1
            yield name, image
        if not found:
            raise InputError(f"{path}: no {', '.join(sorted(SUFFIXES))} images in it")


def _read_one(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    yield str(file.relative_to(path)), file.read_bytes()
        elif path.suffix.lower() in SUFFIXES:
            yield path.name, path.read_bytes()
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() else None
                    if content and Path(member.name).suffix.lower() in SUFFIXES:
                        yield member.name, content.read()
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path}: cannot be read as a folder, tar file or image: {error}") from error
