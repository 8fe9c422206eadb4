"""Lua scripts: each runs on the server as one step, and is called by the SHA1 of its text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Value = bytes | str | int | float

LUA = Path(__file__).parent / "lua"
COMMON = "common"
"""Its text stands in front of every script."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script's name, its whole text, and the SHA1 under which the server keeps it."""

    name: str
    text: str = field(repr=False)
    sha1: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a script. All keys carry the same hash tag."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Value]


def load_scripts(folder: Path) -> dict[str, Script]:
    """Every script of a folder by its file's name, without the ending."""
    common = (LUA / f"{COMMON}.lua").read_text()
    scripts = {}
    for path in sorted(folder.glob("*.lua")):
        if path.stem != COMMON:
            text = f"{common}\n{path.read_text()}"
            sha1 = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - the name that Redis gives to scripts
            scripts[path.stem] = Script(path.stem, text, sha1)
    return scripts


STORE_SCRIPTS = load_scripts(LUA)
