"""Where a store of profiles lies: a folder of this machine, or what fsspec reaches (s3://, gs://, ...)."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from detectors.profile.files import ProfileError


class TakenError(Exception):
    """A file of that name is there already."""


class Place(Protocol):
    """Files by name, with slashes. Errors of the place itself are ProfileErrors that name it."""

    def names(self, folder: str) -> list[str]:
        """Files in a folder; empty where there is none."""

    def read(self, name: str) -> bytes:
        """The content of a file."""

    def create(self, name: str, content: bytes) -> None:
        """Write a new file, whole or not at all; TakenError where it exists, also where another writes it just now."""

    def put_folder(self, name: str, files: Mapping[str, Path], last: tuple[str, bytes]) -> None:
        """Write a folder of files, which may be there in part; `last`, (name, content), is there only when all are."""


class LocalPlace:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, folder: str) -> list[str]:
        """See `Place.names`."""
        path = self.root / folder
        return [entry.name for entry in path.iterdir()] if path.is_dir() else []

    def read(self, name: str) -> bytes:
        """See `Place.read`."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise ProfileError(f"{self.root / name}: {error.strerror}") from error

    def create(self, name: str, content: bytes) -> None:
        """See `Place.create`."""
        path = self.root / name
        new = path.with_name(f".{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(content)
            os.link(new, path)
        except FileExistsError as error:
            raise TakenError(name) from error
        except OSError as error:
            raise ProfileError(f"{path}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                new.unlink()

    def put_folder(self, name: str, files: Mapping[str, Path], last: tuple[str, bytes]) -> None:
        """See `Place.put_folder`: the folder appears as a whole."""
        path = self.root / name
        new = path.with_name(f".{uuid.uuid4().hex}")
        try:
            for relative, source in files.items():
                (new / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, new / relative)
            (new / last[0]).write_bytes(last[1])
            if not path.exists():
                new.replace(path)
        except OSError as error:
            if not path.exists():  # another may have been faster with the same files
                raise ProfileError(f"{path}: {error.strerror}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)


class RemotePlace:
    """Below a URI."""

    def __init__(self, root: str) -> None:
        try:
            import fsspec  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ProfileError(f"{root}: fsspec is not installed: pip install 'layerwatch[claim-check]'") from error
        self.root = root
        try:
            self._store: Any
            self._store, self._path = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:  # a scheme that needs a package of its own, or none
            raise ProfileError(f"{root}: {error}") from error

    def names(self, folder: str) -> list[str]:
        """See `Place.names`."""
        try:
            self._store.invalidate_cache()
            return [str(name).rpartition("/")[2] for name in self._store.ls(f"{self._path}/{folder}", detail=False)]
        except FileNotFoundError:
            return []
        except Exception as error:  # each store has exceptions of its own
            raise self._failed(folder, error) from error

    def read(self, name: str) -> bytes:
        """See `Place.read`."""
        try:
            content: bytes = self._store.cat_file(f"{self._path}/{name}")
        except Exception as error:
            raise self._failed(name, error) from error
        return content

    def create(self, name: str, content: bytes) -> None:
        """See `Place.create`: a store refuses the second of two who write at once (If-None-Match)."""
        try:
            self._store.pipe_file(f"{self._path}/{name}", content, mode="create")
        except FileExistsError as error:
            raise TakenError(name) from error
        except Exception as error:
            raise self._failed(name, error) from error

    def put_folder(self, name: str, files: Mapping[str, Path], last: tuple[str, bytes]) -> None:
        """See `Place.put_folder`."""
        try:
            for relative, source in files.items():
                self._store.pipe_file(f"{self._path}/{name}/{relative}", source.read_bytes())
            self._store.pipe_file(f"{self._path}/{name}/{last[0]}", last[1])
        except Exception as error:
            raise self._failed(name, error) from error

    def _failed(self, name: str, error: Exception) -> ProfileError:
        return ProfileError(f"{self.root.rstrip('/')}/{name}: {type(error).__name__}: {error}")


def place_of(root: str) -> Place:
    """The place of that name; ProfileError where it cannot be reached."""
    scheme, slashes, path = root.partition("://")
    if not slashes:
        return LocalPlace(Path(root))
    return LocalPlace(Path(path)) if scheme in {"file", "local"} else RemotePlace(root)
