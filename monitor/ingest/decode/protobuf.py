"""Protobuf values: framed with the id of a schema in a registry, or bare, with one local message type for all."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from monitor.ingest.decode.registry import Registry, open_frame
from monitor.ingest.decode.remote import UnavailableError
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.settings import ValueSettings

KEPT_TYPES = 256
MAX_INDEXES = 100
"""Messages within messages; no schema nests so deeply."""
WELL_KNOWN = (any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
"""Imports that no registry and perhaps no descriptor set holds."""


class ProtobufReader:
    """Turns a value into a message."""

    def __init__(self, settings: ValueSettings) -> None:
        self._registry = Registry(settings.schema_registry, "protobuf") if settings.schema_registry else None
        self._of_registry = lru_cache(KEPT_TYPES)(self._read_registry)
        self._local: type[Message] | None = None
        if settings.schema_file and settings.message:
            self._local = GetMessageClass(read_descriptor_set(settings.schema_file, settings.message))

    def __call__(self, value: bytes) -> Message:
        """The message in the value.

        Raises:
            DecodeError: it is none of its type, or the type is not known.
            UnavailableError: the registry does not answer.
        """
        kind, payload = self._local, value
        if kind is None:
            schema_id, framed = open_frame(value, "protobuf")
            indexes, payload = read_indexes(framed)
            kind = self._of_registry(schema_id, indexes)
        message = kind()
        try:
            message.ParseFromString(payload)
        except Exception as error:  # DecodeError of protobuf; RuntimeError for some broken texts
            raise DecodeError("protobuf", f"not a {kind.DESCRIPTOR.full_name}: {error}") from error
        return message

    def _read_registry(self, schema_id: int, indexes: tuple[int, ...]) -> type[Message]:
        registry = self._registry
        assert registry  # noqa: S101 - called where there is one
        pool = _pool()
        added: set[str] = set()

        def add(name: str, schema: Any) -> None:
            for reference in schema.references or ():
                if reference.name not in added:
                    add(reference.name, registry.referenced(reference.subject, reference.version, "serialized"))
            file = FileDescriptorProto.FromString(base64.b64decode(schema.schema_str, validate=True))
            file.name = name  # the registry calls every file `default`; others import it by this name
            pool.Add(file)
            added.add(name)

        try:
            add("main.proto", registry.schema(schema_id, "serialized"))
            messages: list[Descriptor] = list(pool.FindFileByName("main.proto").message_types_by_name.values())
            found = messages[indexes[0]]
            for index in indexes[1:]:
                found = found.nested_types[index]
            return GetMessageClass(found)
        except (DecodeError, UnavailableError):
            raise
        except Exception as error:
            where = f"message {'.'.join(map(str, indexes))} of schema {schema_id}"
            raise DecodeError("protobuf", f"{where} cannot be used: {type(error).__name__}: {error}") from error


def read_descriptor_set(path: Path, message: str) -> Descriptor:
    """A message type of a file that `protoc --include_imports --descriptor_set_out` wrote.

    Raises:
        ValueError: the file is no such set, or has no such message.
    """
    pool = _pool()
    known = {module.DESCRIPTOR.name for module in WELL_KNOWN}
    try:
        for file in FileDescriptorSet.FromString(path.read_bytes()).file:
            if file.name not in known:
                pool.Add(file)
        return pool.FindMessageTypeByName(message)
    except OSError:
        raise
    except KeyError as error:
        raise ValueError(f"{path} has no message {message}") from error
    except Exception as error:
        raise ValueError(f"{path} is no descriptor set: {type(error).__name__}: {error}") from error


def read_indexes(framed: bytes) -> tuple[tuple[int, ...], bytes]:
    """(path to the message within its file, payload): a count and so many numbers, each a zigzag varint.

    A lone zero stands for the path (0,), the file's first message.

    Raises:
        DecodeError: the numbers are cut off or absurd.
    """
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while shift <= 28:
            if at >= len(framed):
                break
            byte = framed[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
        raise DecodeError("protobuf", "the path to the message type is cut off or too long")

    count = number()
    if not 0 <= count <= MAX_INDEXES:
        raise DecodeError("protobuf", f"a path of {count} steps to the message type")
    indexes = tuple(number() for _ in range(count)) or (0,)
    if min(indexes) < 0:
        raise DecodeError("protobuf", f"the path to the message type has a negative step: {indexes}")
    return indexes, framed[at:]


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    add: Callable[[bytes], Any] = pool.AddSerializedFile
    for module in WELL_KNOWN:
        add(module.DESCRIPTOR.serialized_pb)
    return pool
