"""Claim checks: a record names its image in a store (`s3://bucket/key`) instead of holding it.

A record is untrusted, so its URI must lie below one of the configured prefixes as it is written, without any step
that a store or a file system could resolve to another place.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from urllib.parse import unquote

from monitor.ingest.decode.remote import UnavailableError, time_limit
from monitor.ingest.decode.values import DecodeError

SHOWN_CHARS = 200
"""Of a URI in an error text."""


def fetch(uri: str, prefixes: Sequence[str], max_bytes: int, timeout_s: float) -> bytes:
    """The bytes that the URI names.

    Args:
        prefixes: as `DecodingSettings` gives them: each ends with a slash.

    Raises:
        DecodeError: outside the prefixes, not there, not allowed, empty or too large.
        UnavailableError: the store does not answer within `timeout_s`, or says that it cannot.
    """
    check_allowed(uri, prefixes)
    import fsspec  # noqa: PLC0415 - an extra, and most records hold their image

    shown = uri[:SHOWN_CHARS]
    try:
        with time_limit(timeout_s):
            store = fsspec.filesystem(uri.partition("://")[0])
            # one request; a byte more than allowed shows that the object is larger
            content: bytes = store.cat_file(uri, start=0, end=max_bytes + 1)
    except MemoryError:
        raise
    except Exception as error:  # each store has exceptions of its own
        if _of_the_record(error):
            raise DecodeError("claim-check", f"{shown}: {type(error).__name__}: {error}") from error
        raise UnavailableError(f"{shown}: {type(error).__name__}: {error}") from error
    if not content:
        raise DecodeError("claim-check", f"{shown} is empty")
    if len(content) > max_bytes:
        raise DecodeError("bytes", f"{shown} is larger than decoding.max_record_bytes ({max_bytes})")
    return content


def check_allowed(uri: str, prefixes: Sequence[str]) -> None:
    """Refuse what is not below one of the prefixes.

    Raises:
        DecodeError: it is not, or could be made to look so: `..`, percent-encoded too, a chain of stores (`::`), a
            symbolic link that leads out.
    """
    shown = repr(uri[:SHOWN_CHARS])
    if not prefixes:
        raise DecodeError("claim-check", f"{shown}: decoding.claim_check_prefixes allows no store")
    below = [prefix for prefix in prefixes if uri.startswith(prefix) and len(uri) > len(prefix)]
    if not below:
        raise DecodeError("claim-check", f"{shown} is below none of decoding.claim_check_prefixes")
    steps = unquote(uri).replace("\\", "/").split("/")
    if "::" in uri or any(step in {".", ".."} for step in steps) or not uri.isprintable():
        raise DecodeError("claim-check", f"{shown} holds `.`, `..`, `::` or a control character")
    if uri.startswith("file://") and not any(_really_below(uri, prefix) for prefix in below):
        raise DecodeError("claim-check", f"{shown}: no file, or a link out of decoding.claim_check_prefixes")


def check_stores(prefixes: Sequence[str]) -> None:
    """Raise ValueError where a store's driver is not installed."""
    for scheme in dict.fromkeys(prefix.partition("://")[0] for prefix in prefixes):
        try:
            import fsspec  # noqa: PLC0415 - an extra

            fsspec.get_filesystem_class(scheme)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"decoding.claim_check_prefixes: {scheme}:// needs the extra claim-check or its own driver: {error}"
            ) from error


def _really_below(uri: str, prefix: str) -> bool:
    path, root = (os.path.realpath(text.removeprefix("file://")) for text in (uri, prefix))
    return os.path.isfile(path) and os.path.commonpath([path, root]) == root  # a pipe or a device would never end


def _of_the_record(error: Exception) -> bool:
    """Whether the store answered that this URI cannot be had."""
    refused = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | ValueError | TypeError)
    return refused or (isinstance(error, OSError) and error.errno == errno.EINVAL)
