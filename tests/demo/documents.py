"""Alert documents as the daemon writes them, made by its own writer."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from monitor.core.alert_document import About, Evidence, MovedSignal, alert_document
from monitor.core.alert_state import Policy, step
from monitor.core.types import Alert, Verdict, share_in_words

START_MS = int(datetime(2026, 1, 5, 8, 0, tzinfo=UTC).timestamp()) * 1000

MOVED = (
    MovedSignal("noise", False, 0.41, 0.33, "low", (10, 5, 5, 10, 10, 20, 20, 20, 20)),
    MovedSignal("layer3", True, 0.30, 0.20, "low", (10, 5, 5, 10, 10, 20, 20, 20, 20)),
)


def episode(stream: str, since_s: int, rule: str = "rate", kind: str = "rate") -> tuple[dict[str, Any], dict[str, Any]]:
    """(firing, resolved) of an alert that begins `since_s` after START_MS, fires at once and resolves 100 s later."""
    policy = Policy("demo", 10_000)
    severity, cause = (0.24, 0.39, 0.54), "ood: more images"
    summary = f"{share_in_words(severity)}; {cause}" if kind == "sequential" else "42.0% of 120 images"
    breached = Verdict(True, 0.42, 0.27, 0.10, 120, summary, severity, cause)
    calm = Verdict(False, 0.05, 0.0, 0.10, 120, "5.0% of 120 images")
    begin_ms = START_MS + since_s * 1000
    alert = step(Alert(rule, stream), breached, begin_ms, policy)
    after = step(alert, calm, begin_ms + 100_000, policy)
    about = About("demo", rule, kind, {}, "", "")
    return _parsed(about, alert), _parsed(about, after)


def _parsed(about: About, alert: Alert) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(alert_document(about, alert, Evidence(MOVED, "sensor")))
    return document
