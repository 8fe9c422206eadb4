"""What people say of alerts and of their images: an expected change, or a real fault. Pure.

Each answer is kept as it was given, with what was said before it; nothing is overwritten. The latest one counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from monitor.core.alert_document import rfc3339
from monitor.core.time_text import parse_time_ms

FeedbackKind = Literal["expected", "fault", "withdrawn"]
"""withdrawn: what was said before no longer counts."""
LABEL = r"[A-Za-z0-9][A-Za-z0-9._\-]{0,62}"
"""A label names a folder, too."""
KINDS: tuple[FeedbackKind, ...] = get_args(FeedbackKind)


@dataclass(frozen=True, slots=True)
class About:
    """An alert, or one of its images; it says what it was, as the alert itself may be gone."""

    alert_id: str
    rule: str
    stream: str
    since_ms: int
    """[since, until) of the evidence when the answer was given, in event time."""
    until_ms: int
    image: str = ""
    """Id of the image; empty where the answer is about the alert as a whole."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """One answer: who said what, when, and what it replaced."""

    id: str
    about: About
    kind: FeedbackKind
    author: str
    comment: str
    at_ms: int
    """By the clock of the wall."""
    before: FeedbackKind | None = None
    """What counted until then."""
    label: str = ""
    """Name of the set of images that they belong to, such as scratches; empty where none was given."""

    @property
    def subject(self) -> tuple[str, str]:
        """(alert id, image id): answers about the same subject replace each other."""
        return self.about.alert_id, self.about.image


@dataclass(frozen=True, slots=True)
class Picture:
    """What is kept of an image that somebody spoke of."""

    name: str
    """`Exemplar.name`."""
    image: str
    """Its id."""
    event_time_ms: int
    stream: str
    jpeg: bytes
    large: bool
    """False: a thumbnail."""


def in_force(answers: Iterable[Feedback]) -> dict[tuple[str, str], Feedback]:
    """{subject: its latest answer}, without the subjects whose latest one was a withdrawal."""
    found: dict[tuple[str, str], Feedback] = {}
    for answer in sorted(answers, key=lambda answer: (answer.at_ms, answer.id)):
        found[answer.subject] = answer
    return {subject: answer for subject, answer in found.items() if answer.kind != "withdrawn"}


def as_fields(answer: Feedback) -> dict[str, Any]:
    """Plain values, times in RFC 3339; the document that is stored and exported."""
    about = answer.about
    return {
        "id": answer.id,
        "kind": answer.kind,
        "before": answer.before,
        "alert_id": about.alert_id,
        "image": about.image or None,
        "rule": about.rule,
        "stream": about.stream,
        "since": rfc3339(about.since_ms),
        "until": rfc3339(about.until_ms),
        "author": answer.author,
        "label": answer.label or None,
        "comment": answer.comment,
        "at": rfc3339(answer.at_ms),
    }


def from_json(text: str | bytes) -> Feedback:
    """Inverse of `as_fields`, as JSON.

    Raises:
        ValueError: not an answer.
    """
    try:
        fields = json.loads(text)
        if not {fields["kind"], fields["before"]} <= {*KINDS, None} or fields["kind"] is None:
            raise ValueError(f"unknown kind {fields['kind']!r}")
        span = parse_time_ms(fields["since"]), parse_time_ms(fields["until"])
        alert_id, rule, stream = (str(fields[name]) for name in ("alert_id", "rule", "stream"))
        about = About(alert_id, rule, stream, *span, str(fields["image"] or ""))
        who = str(fields["author"]), str(fields["comment"])
        at_ms, label = parse_time_ms(fields["at"]), str(fields.get("label") or "")  # of before: no label
        return Feedback(str(fields["id"]), about, fields["kind"], *who, at_ms, fields["before"], label)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not feedback: {type(error).__name__}: {error}") from error
