"""Avro values: framed with the id of a schema in a registry, or bare, with one local schema for all."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from typing import Any

import fastavro

from monitor.ingest.decode.registry import Registry, open_frame
from monitor.ingest.decode.remote import UnavailableError
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.settings import ValueSettings

KEPT_SCHEMAS = 256


class AvroReader:
    """Turns a value into dicts, lists, texts, numbers, bytes and points in time."""

    def __init__(self, settings: ValueSettings) -> None:
        self._registry = Registry(settings.schema_registry, "avro") if settings.schema_registry else None
        self._of_registry = lru_cache(KEPT_SCHEMAS)(self._read_registry)
        path = settings.schema_file
        self._local = fastavro.parse_schema(json.loads(path.read_bytes())) if path else None

    def __call__(self, value: bytes) -> object:
        """The record in the value.

        Raises:
            DecodeError: it is none of its schema, or the schema is not known.
            UnavailableError: the registry does not answer.
        """
        schema: Any = self._local
        payload = value
        if self._registry:
            schema_id, payload = open_frame(value, "avro")
            schema = self._of_registry(schema_id)
        stream = io.BytesIO(payload)
        try:
            found: object = fastavro.schemaless_reader(stream, schema, None)
        except MemoryError:
            raise
        except Exception as error:  # the reader lets through whatever the bytes lead to
            raise DecodeError("avro", f"not a value of its schema: {type(error).__name__}: {error}") from error
        if rest := len(payload) - stream.tell():
            raise DecodeError("avro", f"{rest} bytes follow the value: it is of another schema")
        return found

    def _read_registry(self, schema_id: int) -> Any:
        registry = self._registry
        assert registry  # noqa: S101 - called where there is one
        named: dict[str, Any] = {}

        def parse(schema: Any) -> Any:
            for reference in schema.references or ():
                parse(registry.referenced(reference.subject, reference.version))
            return fastavro.parse_schema(json.loads(schema.schema_str), named_schemas=named)

        try:
            return parse(registry.schema(schema_id))
        except (DecodeError, UnavailableError):
            raise
        except Exception as error:
            raise DecodeError("avro", f"schema {schema_id} cannot be used: {type(error).__name__}: {error}") from error
