"""An alert document as the receivers read it. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

FIRING = "alert.firing"
RESOLVED = "alert.resolved"
TEST = "alert.test"


class NoticeError(ValueError):
    """Not an alert document."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A parsed alert document; docs/alert.schema.json says what `fields` (its `data`) holds."""

    id: str
    type: str
    timestamp: str
    fields: dict[str, Any]

    @property
    def alert_id(self) -> str:
        """Of the episode: the same when it fires and when it resolves."""
        return str(self.fields["alert_id"])

    @property
    def rule(self) -> str:
        """Name of the rule."""
        return str(self.fields["rule"])

    @property
    def stream(self) -> str:
        """What it is about."""
        return str(self.fields["stream"])

    @property
    def labels(self) -> dict[str, str]:
        """From the rule's configuration."""
        return {str(name): str(value) for name, value in self.fields["labels"].items()}

    @property
    def title(self) -> str:
        """One line for a person, without the summary: `[FIRING] drift on cam-1`."""
        return f"[{self.type.removeprefix('alert.').upper()}] {self.rule} on {self.stream}"

    @property
    def share(self) -> str:
        """Share of drifted images with its interval, in words; empty where the rule has none."""
        severity = self.fields["severity"]
        if not severity:
            return ""
        lower, estimate, upper = (100 * float(severity[name]) for name in ("lower", "estimate", "upper"))
        return f"about {estimate:.0f} % of the images ({lower:.0f} to {upper:.0f} %)"

    def link(self, name: str) -> str:
        """`status` or `dashboard`, where it is a web address; else empty."""
        url = str(self.fields["links"][name])
        return url if url.startswith(("http://", "https://")) else ""


def parse_notice(document: str) -> Notice:
    """Read a document.

    Raises:
        NoticeError: it is none.
    """
    try:
        tree = json.loads(document)
        fields = tree["data"]
        notice = Notice(str(tree["id"]), str(tree["type"]), str(tree["timestamp"]), fields)
        _ = (notice.title, notice.alert_id, notice.labels, fields["severity"], fields["links"]["status"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoticeError(f"not an alert document: {type(error).__name__}") from error
    return notice


def time_ms(text: str) -> int:
    """RFC 3339 to milliseconds since the epoch."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
