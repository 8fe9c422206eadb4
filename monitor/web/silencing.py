"""Silences created over the web: read from a form or from JSON, checked, stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from monitor.core.silences import Silence
from monitor.fleet.state import read_silences
from monitor.notify.silences import create_silence
from monitor.store import Store

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 16_384
DURATIONS_S = {"30 minutes": 1_800, "1 hour": 3_600, "4 hours": 14_400, "1 day": 86_400, "1 week": 604_800}
"""Choices of the form."""

Short = Annotated[str, Field(max_length=500)]
Name = Annotated[str, Field(min_length=1, max_length=500)]


class RequestError(ValueError):
    """The request cannot be used; the message says why and is part of the answer, which has this status."""

    def __init__(self, text: str, status: int = 422) -> None:
        super().__init__(text)
        self.status = status


class NewSilence(BaseModel):
    """A silence to create; matchers as in `Silence`."""

    model_config = ConfigDict(extra="forbid")

    matchers: Annotated[dict[Name, Name], Field(min_length=1, max_length=20)]
    duration_s: Annotated[int, Field(ge=60, le=90 * 86_400)]
    author: Short = ""
    comment: Short = ""


Body = TypeVar("Body", bound=BaseModel)


def parsed(model: type[Body], body: str | bytes) -> Body:
    """A JSON body.

    Raises:
        RequestError: it is not what the model says, or a field is wrong.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(f"{where}: {first['msg']}" if where else str(first["msg"])) from error


def from_form(fields: Mapping[str, str], user: str) -> NewSilence:
    """A form's fields: stream, rule (globs, one of them at least), duration_s, author, comment.

    Raises:
        RequestError: a field is wrong.
    """
    matchers = {name: fields[name].strip() for name in ("stream", "rule") if fields.get(name, "").strip()}
    if not matchers:
        raise RequestError("give a stream or a rule; * is all")
    author = fields.get("author", "").strip() or user
    given = {"duration_s": fields.get("duration_s", ""), "author": author, "comment": fields.get("comment", "")}
    return parsed(NewSilence, json.dumps({"matchers": matchers, **given}))


def parse_form(body: bytes) -> dict[str, str]:
    """Fields of a URL-encoded form; of a repeated one the last.

    Raises:
        RequestError: it is not a form.
    """
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=50))
    except ValueError as error:
        raise RequestError("not a form") from error


def keep(store: Store, wanted: NewSilence) -> Silence:
    """Store a silence, in force from now.

    Raises:
        StoreError: Redis does not answer.
    """
    known = read_silences(store)
    silence = create_silence(store, wanted.matchers, wanted.duration_s, wanted.author, wanted.comment, known)
    log.info("silence.made", id=silence.id, matchers=wanted.matchers, seconds=wanted.duration_s, author=wanted.author)
    return silence


def expire(store: Store, silence_id: str) -> bool:
    """End a silence now; False where there is none of that id.

    Raises:
        StoreError: Redis does not answer.
    """
    removed = store.silences.remove(silence_id)
    if removed:
        log.info("silence.expired", id=silence_id)
    return removed


async def read_body(request: Request) -> bytes:
    """The body of a small request.

    Raises:
        RequestError: it is longer than MAX_BODY_BYTES.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestError("too long")
    return body
