"""An alert document as the receivers read it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from monitor.core.types import share_in_words

FIRING = "alert.firing"
RESOLVED = "alert.resolved"
TEST = "alert.test"
NO_DRIFT = ("rejected", "frozen")
"""Kinds of rules whose severity is a share of other images than drifted ones."""


class NoticeError(ValueError):
    """Not an alert document."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An alert document, parsed once for all that handle it; docs/alert.schema.json describes its fields."""

    document: str
    """The text as it stands in the outbox."""
    id: str
    """Of this document: the same on every try."""
    type: str
    timestamp: str
    alert_id: str
    """Of the episode: the same when it fires and when it resolves."""
    monitor: str
    rule: str
    stream: str
    summary: str
    cause: str
    since: str
    labels: Mapping[str, str]
    """From the rule's configuration."""
    links: Mapping[str, str]
    """Those of `status` and `dashboard` that are web addresses."""
    data: Mapping[str, Any]
    """The whole `data` object."""

    @classmethod
    def parse(cls, document: str) -> Notice:
        """Read a document.

        Raises:
            NoticeError: it is not an alert document.
        """
        try:
            tree = json.loads(document)
            data = tree["data"]
            about = {name: str(tree[name]) for name in ("id", "type", "timestamp")}
            about |= {
                name: str(data[name]) for name in ("alert_id", "monitor", "rule", "stream", "summary", "cause", "since")
            }
            labels = {str(name): str(value) for name, value in data["labels"].items()}
            urls = {name: str(data["links"][name]) for name in ("status", "dashboard")}
            _ = data["severity"], data["triage"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NoticeError(f"not an alert document: {type(error).__name__}") from error
        links = {name: url for name, url in urls.items() if url.startswith(("http://", "https://"))}
        return cls(document=document, **about, labels=labels, links=links, data=data)

    @property
    def title(self) -> str:
        """One line for a person, without the summary: `[FIRING] drift on cam-1 (night)`, with the condition if any."""
        condition = f" ({self.data['condition']})" if self.data.get("condition") else ""
        return f"[{self.type.removeprefix('alert.').upper()}] {self.rule} on {self.stream}{condition}"

    @property
    def share(self) -> str:
        """Share of drifted images in words; empty where the alert is not about drift."""
        severity = self.data["severity"]
        if not severity or self.data["kind"] in NO_DRIFT:
            return ""
        lower, estimate, upper = (float(severity[name]) for name in ("lower", "estimate", "upper"))
        return share_in_words((lower, estimate, upper), self.cause)


def time_ms(text: str) -> int:
    """RFC 3339 to milliseconds since the epoch."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
