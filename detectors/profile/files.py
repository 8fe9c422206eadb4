"""A profile on disk: its files, which may be in use while they are replaced, its names and its errors. No torch."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

MANIFEST, TENSORS, REFERENCE = "profile.json", "profile.safetensors", "reference.safetensors"
NETWORK = "network.safetensors"
"""Of a quantised profile alone."""
VERSION, SCALED, QUANTISED, HALF, READABLE = 5, 6, 7, 8, (2, 3, 4, 5, 6, 7, 8)
"""Version 2 has no tones: the high byte of 16-bit images counted, and transparency was ignored. Version 3 has neither a
grid nor a way of resizing, version 4 no coordinates of the mix and one size of calibration for all signals. Version 6
is of scaled decoding, 7 of a quantised network, which earlier programs would overlook. From version 8 on the
fingerprint covers that the network computes in bfloat16."""


class ProfileError(ValueError):
    """A profile cannot be loaded or has not what is asked of it; the message says which, and what is wrong with it."""


class DeviceError(ProfileError):
    """The device that was asked for is not there, or cannot compute as the profile does; the message says which."""


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


def files_to_score(manifest: bytes) -> tuple[str, ...]:
    """Names of the files besides the manifest, of which this is the content, that scoring reads."""
    return (TENSORS, NETWORK) if json.loads(manifest).get("network_digest") else (TENSORS,)


def version_of(precision: str, decoding: str, loaded: int = HALF) -> int:
    """The version that a profile is saved as: the oldest that has what it uses.

    loaded: the version that it was read from; one in bfloat16 keeps it, as its fingerprint would be another one.
    """
    if precision == "bfloat16":
        return loaded
    return QUANTISED if precision == "int8" else VERSION if decoding == "full" else SCALED


def cache_folder() -> Path | None:
    """Where what was made or fetched once is kept: in $XDG_CACHE_HOME or ~/.cache. None for a user without a home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return root / "layerwatch"
