"""Slack, by an incoming webhook. Its URL is a secret."""

from __future__ import annotations

import json
from html import escape
from typing import Any, Literal

from monitor.core.settings import Secret
from monitor.notify.receivers.http_client import GONE, Endpoint
from monitor.notify.receivers.notice import FIRING, RESOLVED, Notice
from monitor.notify.receivers.protocol import OpenProducer, Outcome, Receiver, ReceiverSettings

FINAL = frozenset({400, 403, 404, GONE})
"""Slack's answers to a broken message, to a forbidden one, and where the webhook or channel was deleted."""
SECTION_CHARS = 500
"""Slack takes 3000 in a section and 2000 in a field; escaping makes a character five at most, and nobody reads more
in a chat."""
FIELD_CHARS = 200
LINK_CHARS = 1000
"""A longer link is left out: a cut one would not work."""
SIGNS = {FIRING: "🔴", RESOLVED: "🟢"}
TRIAGE = {
    "sensor": "the sensor",
    "content": "what it shows",
    "mix": "the mix of what it shows",
    "replay": "a recording played again: most of these images are ones the profile was fitted on",
}
URL_ESCAPES = str.maketrans({"<": "%3C", ">": "%3E", "|": "%7C", "&": "&amp;"})


class SlackSettings(ReceiverSettings):
    type: Literal["slack"]
    url: Secret

    def build(self, _: OpenProducer, /) -> Receiver:
        return SlackSender(self)


class SlackSender(Receiver):
    """Posts a short message: what, where, how much, why, and a link. Slack has no ids: a repeat is shown twice."""

    def __init__(self, settings: SlackSettings) -> None:
        super().__init__(settings)
        self._endpoint = Endpoint(settings, settings.url.get_secret_value(), final=FINAL, explain=True)

    def send(self, notice: Notice) -> Outcome:
        return self._endpoint.post(json.dumps(_message(notice)))

    def close(self) -> None:
        self._endpoint.close()


def _message(notice: Notice) -> dict[str, Any]:
    headline = f"{SIGNS.get(notice.type, '🔵')} *{_escaped(notice.title, FIELD_CHARS)}*"
    summary = _escaped(notice.summary, SECTION_CHARS)
    facts = {
        "Drifted": notice.share,
        "Cause": notice.cause,
        "Looks like": TRIAGE.get(notice.data["triage"], ""),
        "Since": notice.since,
        "Monitor": notice.monitor,
    }
    blocks: list[dict[str, Any]] = [
        {"type": "section", "text": _markdown(f"{headline}\n{summary}")},
        {
            "type": "section",
            "fields": [_markdown(f"*{name}*\n{_escaped(text, FIELD_CHARS)}") for name, text in facts.items() if text],
        },
    ]
    links = {name: url.translate(URL_ESCAPES) for name, url in notice.links.items()}
    if shown := [f"<{url}|{name}>" for name, url in links.items() if len(url) <= LINK_CHARS]:
        blocks.append({"type": "context", "elements": [_markdown(" · ".join(shown))]})
    return {"text": f"{headline} {summary}", "blocks": blocks}


def _markdown(text: str) -> dict[str, str]:
    return {"type": "mrkdwn", "text": text}


def _escaped(text: str, chars: int) -> str:
    """Cut, then escaped: a stream called `<!channel>` must not notify the channel."""
    cut = text if len(text) <= chars else f"{text[: chars - 1]}…"
    return escape(cut, quote=False)
