"""What the read models of the fleet have in common: pages show them, the API and the command line write them as JSON.

In the OpenAPI document a type is called as here without `Json`; the text below a field is its description.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from monitor.core.alert_document import rfc3339
from monitor.core.time_text import parse_time_ms

Count: TypeAlias = Annotated[int, Field(ge=0)]
Rounded: TypeAlias = Annotated[float, PlainSerializer(lambda number: round(number, 6), return_type=float)]
"""Six decimals in JSON."""
Share: TypeAlias = Annotated[Rounded, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
Time: TypeAlias = Annotated[
    int,
    BeforeValidator(lambda time: parse_time_ms(time) if isinstance(time, str) else time),
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
            "format": "date-time",
            "description": "RFC 3339, UTC, milliseconds.",
        }
    ),
]
"""Milliseconds since the epoch; RFC 3339 in JSON."""


class Answer(BaseModel):
    """One closed type of answer. A field with `exclude` is for the pages alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, use_attribute_docstrings=True)
