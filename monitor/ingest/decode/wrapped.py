"""Values that hold their image inside something else: JSON, Avro, Protobuf, or the URI of an object in a store.

A wrapped value holds one image: bytes, base64, a `data:` URI, or a claim check (see `claim_check.py`).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import UUID

from monitor.core.time_text import parse_time_ms
from monitor.ingest.decode.claim_check import check_stores, fetch
from monitor.ingest.decode.values import Contents, DecodeError, read_value
from monitor.ingest.settings import DecodingSettings, ValueSettings

CLAIM_CHECK = ValueSettings(type="json", image="/uri")
"""A claim check among raw values is JSON: `{"uri": "s3://bucket/key"}`."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class ValueReader:
    """Reads what the sections `value` and `decoding` describe; picklable until it is used."""

    limits: DecodingSettings
    settings: ValueSettings = field(default_factory=ValueSettings)

    def __call__(self, value: bytes, content_type: bytes | None) -> Contents:
        """The images of a value that is not empty.

        Raises:
            DecodeError: malformed, without an image, or with too many.
            UnavailableError: a server that is needed does not answer.
        """
        if self.settings.type != "raw":
            return self._unwrap(self.settings, self._parse(value))
        if self.limits.claim_check_prefixes and _is_json(value, content_type):
            return self._unwrap(CLAIM_CHECK, parse_json(value))
        return read_value(value, content_type, self.limits)

    def check(self) -> None:
        """Raise ValueError, with the key at fault, where values cannot be read: an extra or a schema is missing."""
        check_stores(self.limits.claim_check_prefixes)
        if self.settings.type == "raw":
            return
        try:
            ValueReader(self.limits, self.settings)._parse  # noqa: B018 - not ours: that must stay picklable
        except ImportError as error:
            extras = "pip install 'layerwatch[avro,protobuf,schema-registry]'"
            raise ValueError(f"value.type: {self.settings.type} needs {extras}: {error}") from error
        except Exception as error:  # whatever a schema's parser raises
            key = "schema_file" if self.settings.schema_file else "schema_registry"
            raise ValueError(f"value.{key}: {type(error).__name__}: {error}") from error

    @property
    def asks_servers(self) -> bool:
        """Whether it needs connections: to a store, or to a schema registry."""
        stores = [prefix for prefix in self.limits.claim_check_prefixes if not prefix.startswith("file://")]
        return bool(stores or self.settings.schema_registry)

    @property
    def files(self) -> tuple[Path, ...] | None:
        """What it reads of this machine; None where nobody knows beforehand: claim checks, and clients of servers."""
        if self.asks_servers or self.limits.claim_check_prefixes:
            return None
        return (self.settings.schema_file,) if self.settings.schema_file else ()

    @property
    def max_images(self) -> int:
        """The most images of one value."""
        return self.limits.max_images_per_record if self.settings.type == "raw" else 1

    @cached_property
    def _one_image(self) -> DecodingSettings:
        return self.limits.model_copy(update={"max_images_per_record": 1})

    @cached_property
    def _parse(self) -> Callable[[bytes], object]:
        # the readers are imported where they are used: their libraries are extras
        if self.settings.type == "avro":
            from monitor.ingest.decode.avro import AvroReader  # noqa: PLC0415

            return AvroReader(self.settings)
        if self.settings.type == "protobuf":
            from monitor.ingest.decode.protobuf import ProtobufReader  # noqa: PLC0415

            return ProtobufReader(self.settings)
        return parse_json

    def _unwrap(self, settings: ValueSettings, tree: object) -> Contents:
        found = {name: lookup(tree, pointer, settings) for name, pointer in settings.pointers.items()}
        image = self._bytes_of(found["image"], settings)
        try:
            inner = read_value(image, None, self._one_image)
        except DecodeError as error:
            text = f"the image at {settings.image}: {error}"
            if error.reason == "images":
                text = f"there are several images at {settings.image}; a wrapped value holds one"
            raise DecodeError(error.reason, text) from error
        ids = [_id(found["id"], settings)] if "id" in found else inner.ids
        times = [_time_ms(found["time"], settings)] if "time" in found else inner.times
        return Contents(inner.images, ids, times)

    def _bytes_of(self, image: object, settings: ValueSettings) -> bytes:
        if isinstance(image, bytes) and image:
            return image
        if not isinstance(image, str) or not image:
            what = "nothing" if image in (b"", "") else type(image).__name__
            raise DecodeError(settings.type, f"expected an image at {settings.image}, found {what}")
        if _URI.match(image) or settings is CLAIM_CHECK:
            limits = self.limits
            # half of the time for the whole record: decoding comes after it
            return fetch(image, limits.claim_check_prefixes, limits.max_record_bytes, limits.timeout_s / 2)
        try:
            content = _data_uri(image) if image[:5].lower() == "data:" else from_base64(image)
        except ValueError as error:
            raise DecodeError(settings.type, f"the text at {settings.image} is no image: {error}") from error
        if not content:
            raise DecodeError(settings.type, f"the text at {settings.image} holds no bytes")
        return content


def parse_json(value: bytes) -> object:
    """The JSON of a value; a frame with a schema id, as Confluent's JSON serializer writes it, is left out.

    Raises:
        DecodeError: it is none.
    """
    try:
        return json.loads(value[5:] if value[:1] == b"\0" else value)
    except (ValueError, RecursionError) as error:
        raise DecodeError("json", f"not readable as JSON: {error}") from error


def lookup(tree: object, pointer: str, settings: ValueSettings) -> object:
    """What a JSON pointer (RFC 6901) leads to, in dicts, lists and Protobuf messages alike.

    Raises:
        DecodeError: it leads nowhere, or to a null.
    """
    found: Any = tree
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        try:
            found = _member(found, name)
        except (LookupError, TypeError, ValueError):
            found = None
        if found is None:
            raise DecodeError(settings.type, f"there is nothing at {pointer}")
    return found


def _member(found: Any, name: str) -> Any:
    if isinstance(found, Mapping):
        return found[name]
    if hasattr(found, "DESCRIPTOR"):
        field = found.DESCRIPTOR.fields_by_name[name]
        return None if field.has_presence and not found.HasField(name) else getattr(found, name)
    return found[int(name)] if name.isdecimal() and not isinstance(found, str | bytes) else None


def from_base64(text: str) -> bytes:
    """Base64 in the standard or the URL alphabet, with or without line ends and padding.

    Raises:
        ValueError: it is none.
    """
    packed = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)


def _data_uri(text: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma:
        raise ValueError("a data: URI without a comma")
    return from_base64(body) if head.lower().endswith(";base64") else unquote_to_bytes(body)


def _id(found: object, settings: ValueSettings) -> str | int:
    if isinstance(found, UUID):
        return str(found)
    if isinstance(found, str | int) and not isinstance(found, bool) and found != "":
        return found
    raise DecodeError(settings.type, f"expected a text or a whole number at {settings.id}, found {found!r:.60}")


def _time_ms(found: Any, settings: ValueSettings) -> int:
    """Milliseconds, RFC 3339, a point in time of Avro's logical types, or Protobuf's Timestamp."""
    try:
        if isinstance(found, str):
            return parse_time_ms(found)
        if isinstance(found, datetime):
            return round(found.timestamp() * 1000)
        if hasattr(found, "ToMilliseconds"):
            return int(found.ToMilliseconds())
        if isinstance(found, int) and not isinstance(found, bool):
            return found
    except (ValueError, OverflowError) as error:
        raise DecodeError("event-time", f"at {settings.time}: {error}") from error
    raise DecodeError("event-time", f"expected a time at {settings.time}, found {found!r:.60}")


def _is_json(value: bytes, content_type: bytes | None) -> bool:
    named = (content_type or b"")[:100].split(b";")[0].strip().lower()
    return named == b"application/json" or value[:1] == b"{"
