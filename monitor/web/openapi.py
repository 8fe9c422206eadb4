"""The OpenAPI document of the JSON API, generated from its endpoints and the types of their answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from monitor.fleet.stream_view import SPANS_MS
from monitor.web.answers import ErrorJson
from monitor.web.api import Endpoint

DESCRIPTION = (
    "State of a monitor, for scripts. New fields may join version 1; a change that breaks readers gets another path."
)
SUCCESS = {
    "GET": (200, "The current state."),
    "POST": (201, "It is kept, and in force."),
    "DELETE": (204, "The silence has ended."),
}
ERRORS = {
    403: "Nothing may be written: no token is configured, or another site sent this.",
    404: "There is no stream of that name, or no silence of that id.",
    415: "The body is not application/json.",
    422: "The body or a parameter cannot be used; `error` says why.",
    503: "Redis does not answer.",
}
NAME = "Percent-encoded, slashes too. The names `.` and `..`: leave it empty and give the query parameter `name`."
ALERT = {
    "name": "alert",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "Look at the time of this alert.",
}
SPAN = {
    "name": "span",
    "in": "query",
    "required": False,
    "schema": {"type": "string", "enum": list(SPANS_MS)},
    "description": "Length of the time line, which then ends now; else it is the last hour, or the time of the alert.",
}
PAGE = [
    {
        "name": "limit",
        "in": "query",
        "required": False,
        "schema": {"type": "integer", "minimum": 1},
        "description": "How many streams to give at most; without it all of them.",
    },
    {
        "name": "after",
        "in": "query",
        "required": False,
        "schema": {"type": "string"},
        "description": "Give the streams that come after this name; `next` of the page before.",
    },
]


class _Schemas(GenerateJsonSchema):
    """Without the titles that pydantic derives from names: they add nothing."""

    def normalize_name(self, name: str) -> str:
        return super().normalize_name(name.removesuffix("Json"))

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The document as JSON; its schemas are closed: an answer has no fields besides those described."""
    found = list(endpoints)
    bodies = {endpoint.body for endpoint in found if endpoint.body}
    answers = [(answer, "serialization") for answer in {endpoint.answer for endpoint in found} if answer]
    _, schemas = models_json_schema(
        [*answers, (ErrorJson, "serialization"), *((body, "validation") for body in bodies)],  # type: ignore[list-item]
        ref_template="#/components/schemas/{model}",
        schema_generator=_Schemas,
    )
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in found:
        path = re.sub(r":\w+}", "}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, re.findall(r"{(\w+)}", path))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Layerwatch", "version": "1", "description": DESCRIPTION},
        "servers": [{"url": "."}],
        "security": [{"bearer": []}, {"basic": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {scheme: {"type": "http", "scheme": scheme} for scheme in ("bearer", "basic")},
            "schemas": {
                name: {key: value for key, value in schema.items() if key != "title"}
                for name, schema in schemas["$defs"].items()
            },
        },
    }


def _operation(endpoint: Endpoint, names: list[str]) -> dict[str, Any]:
    status, meaning = SUCCESS[endpoint.method]
    success: dict[str, Any] = {"description": meaning}
    if endpoint.answer is not None:
        success["content"] = _json_of(endpoint.answer)
    statuses = [
        *([403] if endpoint.writes else []),
        *([404] if names else []),
        *([415, 422] if endpoint.body else [422] if "name" in names or endpoint.paged else []),
        503,
    ]
    refused = {"text/plain": {"schema": {"type": "string"}}}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "responses": {
            str(status): success,
            "401": {"description": "Credentials are missing or wrong.", "content": refused},
            **{str(error): {"description": ERRORS[error], "content": _json_of(ErrorJson)} for error in statuses},
        },
    }
    if endpoint.body:
        operation["requestBody"] = {"required": True, "content": _json_of(endpoint.body)}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    if "name" in names:
        parameters[0]["description"] = NAME
        parameters += [ALERT, SPAN]
    if endpoint.paged:
        parameters += PAGE
    return {**operation, "parameters": parameters} if parameters else operation


def _json_of(model: type[BaseModel]) -> dict[str, Any]:
    name = model.__name__.removesuffix("Json")
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
