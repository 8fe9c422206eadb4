"""Base class and types of the configuration's sections. Each room keeps its own sections beside its code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from monitor.core.time_text import parse_duration_s


def split_commas(value: object) -> object:
    """Let an environment variable give a list as `a,b`."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _unit(value: object) -> object:
    """Let a text with units stand for a number of seconds."""
    return parse_duration_s(value) if isinstance(value, str) and value.strip()[-1:].isalpha() else value


READ_SECRET = "read_secret"  # noqa: S105 - a key, not a secret
"""Key of the validation context: the function that reads a secret stored outside the file."""
SECRET_ERROR = "secret"  # noqa: S105 - likewise
"""Type of the error where a secret has the wrong type: its input must not be shown."""


def _secret(value: object, info: ValidationInfo) -> object:
    """Accept `{env: NAME}` and `{file: PATH}` besides a plain string, so that the file needs to hold no secret."""
    if isinstance(value, str | SecretStr):
        return value
    if not isinstance(value, Mapping):
        # an error of its own kind, so that nobody shows the value: a number or a list may be the secret
        raise PydanticCustomError(SECRET_ERROR, "must be text, in quotes where YAML would read it otherwise")
    if not info.context or READ_SECRET not in info.context:
        raise ValueError("must be a string here: only loading a file reads secrets from elsewhere")
    return info.context[READ_SECRET](value)


Secret = Annotated[SecretStr, BeforeValidator(_secret)]
Names = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
Duration = Annotated[NonNegativeFloat, BeforeValidator(_unit)]
"""Seconds, or a text such as `90s`, `5m` or `1h30m`."""
Share = Annotated[float, Field(gt=0, lt=1)]
Glob = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class BucketSettings(Section):
    """How event time is divided into buckets."""

    seconds: PositiveInt = 10
    lateness_s: NonNegativeFloat = 10.0
    idle_timeout_s: PositiveFloat = 30.0
    max_future_s: PositiveFloat = 60.0
    retention_s: PositiveInt = 7 * 86_400
    history_s: PositiveInt = 90 * 86_400

    @property
    def length_ms(self) -> int:
        return self.seconds * 1000

    @property
    def lateness_ms(self) -> int:
        """How far an image may lag behind the highest event time and still count in its own bucket."""
        return round(self.lateness_s * 1000)

    @property
    def max_future_ms(self) -> int:
        """How far a timestamp may be ahead of the clock."""
        return round(self.max_future_s * 1000)
