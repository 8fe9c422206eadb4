"""A profile on disk: its files, which may be in use while they are replaced, its names and its errors. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

VERSION, SCALED, READABLE = 5, 6, (2, 3, 4, 5, 6)
"""Version 2 has no tones: the high byte of 16-bit images counted, and transparency was ignored. Version 3 has neither a
grid nor a way of resizing, version 4 no coordinates of the mix and one size of calibration for all signals. Version 6
is of scaled decoding, which earlier programs would overlook."""
MANIFEST, TENSORS, REFERENCE = "profile.json", "profile.safetensors", "reference.safetensors"


class ProfileError(ValueError):
    """A profile cannot be loaded or has not what is asked of it; the message says which, and what is wrong with it."""


CONDITION = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
"""Names of conditions: they stand in alert documents, and in names of tensors."""


def check_condition(name: str) -> str:
    """The name of a condition itself; ProfileError where it is none."""
    if not CONDITION.fullmatch(name):
        raise ProfileError(f"{name!r} names no condition: lower-case letters, digits, - and _, 32 at most")
    return name


def replace_file(path: Path, content: bytes) -> None:
    """Write the file whole: whoever has the old one open or mapped into memory keeps it as it was."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    new.replace(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest at `path`.

    Raises:
        ProfileError: there is none, or it is of a version that is not readable.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}; make a profile with `layerwatch fit`") from error
    except ValueError as error:
        raise ProfileError(f"{path}: not valid JSON: {error}") from error
    if document.get("version") not in READABLE:
        known = f"{min(READABLE)} to {max(READABLE)}"
        raise ProfileError(f"{path}: version {document.get('version')!r}; this program reads versions {known}")
    return document
