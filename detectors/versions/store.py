"""A store of the versions of one profile: `scoring.profile` may name it in the place of a folder.

    <root>/versions/<content>/...      the files of a version, never changed
    <root>/versions/<content>/version.json      their digests: written last, so a half-copied version is none
    <root>/changes/000001.json ...     what happened; each is created once, and the state follows from all of them

Whoever adds a change creates the next number, which only one of two can do: no lock, on a disk as in an object store.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from detectors.profile.files import MANIFEST, ProfileError, cache_folder
from detectors.versions.journal import Change, Journal, Kind, State, Version, from_json, numbers_of
from detectors.versions.place import LocalPlace, TakenError, place_of

Found = TypeVar("Found")

RECORD = "version.json"
TRIES = 20
"""Of a change while others make theirs."""


class ProfileStore:
    """Versions at a folder or URI. Every method may raise ProfileError, which names what is at fault."""

    def __init__(self, root: str) -> None:
        self.root, self._place = root, place_of(root)
        self._read: dict[int, Change] = {}
        """Changes are never changed: each is read once."""

    # ---------------------------------------------------------------- reading

    def exists(self) -> bool:
        """Whether anything was ever added."""
        return bool(self._place.names("changes"))

    def journal(self) -> Journal:
        """What happened so far."""
        try:
            numbers = numbers_of(self._place.names("changes"))
            if self._read.keys() - set(numbers):  # somebody made the store anew
                self._read = {}
            for n in numbers:
                if n not in self._read:
                    self._read[n] = from_json(n, json.loads(self._place.read(_change_name(n))))
            return Journal.of(self._read[n] for n in numbers)
        except (ProfileError, ValueError) as error:
            raise ProfileError(f"{self.root}: {error}") from error

    def find(self, wanted: str = State.ACTIVE) -> Version:
        """See `Journal.find`."""
        return self._named(lambda: self.journal().find(wanted))

    def manifest(self, version: Version) -> dict[str, Any]:
        """The manifest of a version: what it was learned from, when, and what it measures."""
        document: dict[str, Any] = json.loads(self._place.read(f"versions/{version.content}/{MANIFEST}"))
        return document

    def fetch(self, version: Version) -> Path:
        """The folder of a version, whose files are those that were added; of a remote store a copy in the user's cache.

        Raises:
            ProfileError: a file is missing or damaged, or the copy cannot be written.
        """
        folder = f"versions/{version.content}"
        files = json.loads(self._place.read(f"{folder}/{RECORD}"))["files"]
        if isinstance(self._place, LocalPlace):
            return _verified(self._place.root / folder, files)
        if (cache := cache_folder()) is None:
            raise ProfileError(f"{self.root}: no place for a copy: set XDG_CACHE_HOME, this user has no home")
        kept = cache / "profiles" / version.content
        if kept.is_dir():
            try:
                return _verified(kept, files)
            except ProfileError:
                shutil.rmtree(kept, ignore_errors=True)
        try:
            return self._copied(folder, files, kept)
        except OSError as error:
            raise ProfileError(
                f"{kept}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written"
            ) from error

    def _copied(self, folder: str, files: dict[str, str], kept: Path) -> Path:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, ignore_cleanup_errors=True) as new:
            made = Path(new) / "files"
            for name in files:
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).write_bytes(self._place.read(f"{folder}/{name}"))
            _verified(made, files)
            try:
                made.replace(kept)
            except OSError:  # another process was faster with the same files
                _verified(kept, files)
        return kept

    # ---------------------------------------------------------------- writing

    def add(self, folder: Path, reason: str = "") -> Version:
        """Copy a profile into the store, as a candidate.

        Raises:
            ProfileError: it is no profile, or a version already.
        """
        if not (folder / MANIFEST).is_file():
            raise ProfileError(f"{folder / MANIFEST}: No such file or directory; make a profile with `layerwatch fit`")
        fingerprint = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("fingerprint", "")
        paths = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        }
        files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
        content = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
        record = json.dumps({"fingerprint": fingerprint, "files": files}, indent=1).encode()

        def decide(journal: Journal) -> Change:
            if same := next((v for v in journal.versions if v.content == content), None):
                raise ProfileError(f"{folder} is version {same.number} already ({same.state})")
            number = len(journal.versions) + 1
            return _change(Kind.ADD, number, reason, content=content, fingerprint=fingerprint)

        decide(self.journal())
        self._place.put_folder(f"versions/{content}", paths, (RECORD, record))
        return self._change(decide)

    def promote(self, wanted: str, reason: str = "") -> Version:
        """Make a version the active one."""
        return self._change(lambda journal: _change(Kind.PROMOTE, journal.promotable(wanted).number, reason))

    def roll_back(self, reason: str = "") -> Version:
        """Make that version active again which was before the active one."""
        return self._change(lambda journal: _change(Kind.ROLL_BACK, journal.before().number, reason))

    def shadow(self, wanted: str, reason: str = "") -> Version:
        """Put a version in shadow, in the place of the one that is."""
        return self._change(lambda journal: _change(Kind.SHADOW, journal.shadowable(wanted).number, reason))

    def retire(self, wanted: str, reason: str = "") -> Version:
        """Keep a version from being promoted again; its files stay."""
        return self._change(lambda journal: _change(Kind.RETIRE, journal.retirable(wanted).number, reason))

    def _change(self, decide: Callable[[Journal], Change]) -> Version:
        """Append what `decide` makes of the state; again where somebody else's change came first."""
        for _ in range(TRIES):
            journal = self.journal()
            change = self._named(partial(decide, journal))
            content = json.dumps(change.to_json(), indent=1).encode()
            try:
                self._place.create(_change_name(journal.changes + 1), content)
            except TakenError:
                continue
            return self.journal().versions[change.version - 1]
        raise ProfileError(f"{self.root}: others keep changing it; try again")

    def _named(self, look: Callable[[], Found]) -> Found:
        try:
            return look()
        except ProfileError as error:
            raise ProfileError(f"{self.root}: {error}") from error


def located(address: str | Path) -> Path:
    """The folder of the profile at an address.

    Args:
        address: a profile's folder; a store, for its active version; or STORE@VERSION, for a version by its number or
            fingerprint.

    Raises:
        ProfileError: it names a store, and there is no such version, or it cannot be read.
    """
    text = str(address)
    if is_folder(text):
        return Path(text)
    root, wanted = split_address(text)
    store = ProfileStore(root)
    if not store.exists():
        if "://" in text:
            raise ProfileError(f"{store.root}: there are no versions; `layerwatch profile add` makes the first")
        return Path(text)  # whoever reads it says what is missing
    return store.fetch(store.find(wanted))


class Pointer:
    """Which profile an address names now: that of a store moves when another version is made active."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._store: ProfileStore | None = None
        self._wanted = ""

    def pinned(self) -> str:
        """The address of that profile alone: STORE@VERSION where it is in a store, else the folder.

        Empty for STORE@shadow while no version is in shadow.

        Raises:
            ProfileError: there is no such version, or the store cannot be read.
        """
        if is_folder(self.address):
            return self.address
        if self._store is None:
            root, self._wanted = split_address(self.address)
            store = ProfileStore(root)
            if not store.exists():
                return self.address
            self._store = store  # kept: it reads no change twice
        if self._wanted == State.SHADOW and self._store.journal().shadow is None:
            return ""
        return f"{self._store.root}@{self._store.find(self._wanted).number}"


def is_folder(address: str | Path) -> bool:
    """Whether the address is that of a profile's own folder."""
    return "://" not in str(address) and (Path(address) / MANIFEST).exists()


def is_here(address: str) -> bool:
    """Whether the address lies on this machine, without asking another one."""
    return "://" not in address and any(Path(part).exists() for part in (address, address.partition("@")[0]))


def split_address(address: str) -> tuple[str, str]:
    """The root of the store that an address names, and the version wanted of it.

    >>> split_address("models/line@2"), split_address("s3://models/line")
    (('models/line', '2'), ('s3://models/line', 'active'))
    """
    root, _, wanted = address.partition("@") if "://" not in address else _split_uri(address)
    return root, wanted or str(State.ACTIVE)


def _split_uri(text: str) -> tuple[str, str, str]:
    """The last path segment alone may name a version: a user name may stand before the host."""
    head, slash, last = text.rpartition("/")
    name, at, wanted = last.partition("@")
    return f"{head}{slash}{name}", at, wanted


def _change(kind: Kind, number: int, reason: str, content: str = "", fingerprint: str = "") -> Change:
    at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Change(kind, number, at, _who(), reason, content, fingerprint)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _change_name(number: int) -> str:
    return f"changes/{number:06d}.json"


def _verified(folder: Path, files: dict[str, str]) -> Path:
    for name, digest in files.items():
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise ProfileError(f"{folder / name}: {error.strerror}") from error
        if found != digest:
            raise ProfileError(f"{folder / name}: damaged: its digest is {found[:12]}..., not {digest[:12]}...")
    return folder
