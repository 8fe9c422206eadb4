"""Silences: which alerts are not sent, from when to when. Pure; times are those of the wall clock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from monitor.core.alert_document import rfc3339
from monitor.core.time_text import parse_time_ms


@dataclass(frozen=True, slots=True)
class Silence:
    """Hides the alerts that all of its matchers match, in [starts_ms, ends_ms).

    matchers: name -> glob (case-sensitive). `stream` and `rule` are the alert's own, any other name is one of its
    labels; an alert without the label has an empty value there.
    """

    id: str
    matchers: Mapping[str, str]
    starts_ms: int
    ends_ms: int
    author: str = ""
    comment: str = ""

    def active(self, now_ms: int) -> bool:
        """Whether it applies at that time."""
        return self.starts_ms <= now_ms < self.ends_ms

    def matches(self, alert: Mapping[str, Any]) -> bool:
        """Whether it is about this alert.

        Args:
            alert: `data` of an alert document.
        """
        values = {**alert["labels"], "stream": alert["stream"], "rule": alert["rule"]}
        return all(fnmatchcase(str(values.get(name, "")), glob) for name, glob in self.matchers.items())


def silenced(document: Mapping[str, Any], silences: Iterable[Silence], now_ms: int) -> Silence | None:
    """The silence in force that hides this alert document (parsed), or None. A test alert is never hidden."""
    if document["type"] == "alert.test":
        return None
    return next((s for s in silences if s.active(now_ms) and s.matches(document["data"])), None)


def read_all(stored: Mapping[str, str]) -> tuple[list[Silence], dict[str, str]]:
    """The silences that can be read, the next to end first, and {id: why not} of the others, which hide nothing.

    Args:
        stored: {id: text of `to_json`}.
    """
    found, unreadable = [], {}
    for silence_id, text in stored.items():
        try:
            found.append(from_json(text))
        except ValueError as error:
            unreadable[silence_id] = str(error)
    return sorted(found, key=lambda silence: (silence.ends_ms, silence.id)), unreadable


def to_json(silence: Silence) -> str:
    """One line of JSON: `{id, matchers, starts, ends, author, comment}`, times in RFC 3339."""
    fields = {
        "id": silence.id,
        "matchers": dict(silence.matchers),
        "starts": rfc3339(silence.starts_ms),
        "ends": rfc3339(silence.ends_ms),
        "author": silence.author,
        "comment": silence.comment,
    }
    return json.dumps(fields, ensure_ascii=False, sort_keys=True)


def from_json(text: str | bytes) -> Silence:
    """Inverse of `to_json`.

    Raises:
        ValueError: not a silence; or one without matchers, which would hide everything: `{"stream": "*"}` says so.
    """
    try:
        fields = json.loads(text)
        silence = Silence(
            id=str(fields["id"]),
            matchers={str(name): str(glob) for name, glob in fields["matchers"].items()},
            starts_ms=parse_time_ms(fields["starts"]),
            ends_ms=parse_time_ms(fields["ends"]),
            author=str(fields.get("author", "")),
            comment=str(fields.get("comment", "")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a silence: {type(error).__name__}: {error}") from error
    if not silence.matchers:
        raise ValueError("a silence needs a matcher; stream '*' hides everything")
    return silence
