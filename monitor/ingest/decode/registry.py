"""Schemas of a Confluent schema registry, and the frame that names them: a zero byte, four bytes of id, the payload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monitor.ingest.decode.remote import UnavailableError, time_limit
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.settings import SchemaRegistrySettings

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema

HEAD_BYTES = 5
TIMEOUT_S = 10.0


def open_frame(value: bytes, reason: str) -> tuple[int, bytes]:
    """(schema id, payload) of a framed value.

    Raises:
        DecodeError: with that reason: the value has no frame.
    """
    if len(value) < HEAD_BYTES or value[0] != 0:
        raise DecodeError(reason, f"no schema id: it starts with {value[:HEAD_BYTES]!r}, not a zero and four bytes")
    return int.from_bytes(value[1:HEAD_BYTES], "big"), value[HEAD_BYTES:]


class Registry:
    """Asks the registry for schemas; the client keeps those that it has seen."""

    def __init__(self, settings: SchemaRegistrySettings, reason: str) -> None:
        from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: PLC0415 - an extra

        options: dict[str, Any] = {"url": settings.url, "timeout": TIMEOUT_S, "max.retries": 0}
        if settings.username is not None:
            password = settings.password.get_secret_value() if settings.password else ""
            options["basic.auth.user.info"] = f"{settings.username}:{password}"
        if settings.ca_file:
            options["ssl.ca.location"] = str(settings.ca_file)
        self._client, self._reason = SchemaRegistryClient(options), reason

    def schema(self, schema_id: int, form: str | None = None) -> Schema:
        """A schema by its id.

        Raises:
            DecodeError: the registry does not know it.
            UnavailableError: the registry does not answer.
        """
        return self._ask(f"schema {schema_id}", lambda: self._client.get_schema(schema_id, fmt=form))

    def referenced(self, subject: str, version: int, form: str | None = None) -> Schema:
        """A schema that another one refers to; raises as `schema` does."""
        what = f"version {version} of {subject}"
        return self._ask(what, lambda: self._client.get_version(subject, version, fmt=form).schema)

    def _ask(self, what: str, question: Any) -> Schema:
        try:
            with time_limit(TIMEOUT_S):
                schema: Schema = question()
        except Exception as error:  # of the client and of the HTTP library below it
            if getattr(error, "http_status_code", 0) in {404, 422}:
                raise DecodeError(self._reason, f"the schema registry has no {what}: {error}") from error
            raise UnavailableError(f"schema registry, {what}: {type(error).__name__}: {error}") from error
        return schema
