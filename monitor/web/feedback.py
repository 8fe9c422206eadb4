"""Feedback given over the web: read from a form or from JSON, checked, kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from monitor.core.feedback import LABEL, Feedback, FeedbackKind
from monitor.fleet.feedback import FeedbackError, Wanted, give_feedback
from monitor.web.guard import user_of
from monitor.web.silencing import Name, RequestError, Short, parsed
from monitor.web.site import Site


class NewFeedback(BaseModel):
    """What somebody says of an alert, or of the image of that id which is shown with it."""

    model_config = ConfigDict(extra="forbid")

    alert_id: Name
    kind: FeedbackKind
    image: Annotated[str, Field(max_length=10_000)] = ""
    """Empty: the alert as a whole."""
    author: Short = ""
    comment: Short = ""
    label: Annotated[str, Field(pattern=rf"^({LABEL})?$")] = ""
    """Name of the set of images that they belong to, such as scratches."""


def from_form(fields: Mapping[str, str]) -> NewFeedback:
    """A form's fields, which are those of `NewFeedback`.

    Raises:
        RequestError: a field is wrong.
    """
    given = {name: fields[name] for name in NewFeedback.model_fields if name in fields}
    return parsed(NewFeedback, json.dumps(given))


def keep(site: Site, request: Request, wanted: NewFeedback) -> Feedback:
    """Keep it, by the name that the request was authenticated with, else by the one that was given.

    Raises:
        RequestError: there is no such alert, or no such image of it.
        StoreError: Redis does not answer.
    """
    author = user_of(request.headers.get("authorization", "")) or wanted.author.strip()
    said = Wanted(wanted.alert_id, wanted.kind, wanted.image, author, wanted.comment.strip(), wanted.label)
    try:
        return give_feedback(site.store, site.overview.snapshot(), said)
    except FeedbackError as error:
        raise RequestError(str(error)) from error
