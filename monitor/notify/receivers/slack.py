"""Slack, by an incoming webhook. Its URL is a secret."""

from __future__ import annotations

import json
from typing import Any

from monitor.notify.receivers.http_client import GONE, Endpoint
from monitor.notify.receivers.notice import FIRING, RESOLVED, Notice, parse_notice
from monitor.notify.receivers.protocol import Outcome
from monitor.notify.receivers.settings import SlackSettings

FINAL = frozenset({400, 403, 404, GONE})
"""Slack's words for a broken message, a forbidden one, and a webhook or channel that is no more."""
SECTION_CHARS = 500
"""Slack takes 3000 in a section and 2000 in a field; escaping makes a character five at most, and nobody reads more
in a chat."""
FIELD_CHARS = 200
LINK_CHARS = 1000
"""A longer one is left out: cut it would lead nowhere."""
SIGNS = {FIRING: "🔴", RESOLVED: "🟢"}


class SlackSender:
    """Posts a short message: what, where, how much, why, and a link.

    Raises:
        ReceiverConfigError: the URL cannot be used.
    """

    def __init__(self, settings: SlackSettings) -> None:
        self.name = settings.name
        self.send_resolved = settings.send_resolved
        url = settings.url.get_secret_value()
        self._endpoint = Endpoint(f"receivers.{settings.name}.url", url, settings.timeout_s, final=FINAL, explain=True)

    def send(self, document: str, attempt: int) -> Outcome:
        """Try once. Slack has no ids: a repeated message is shown twice."""
        del attempt
        return self._endpoint.post(json.dumps(_message(parse_notice(document))))

    def close(self) -> None:
        """Free the connections."""
        self._endpoint.close()


def _message(notice: Notice) -> dict[str, Any]:
    headline = f"{SIGNS.get(notice.type, '🔵')} *{_escaped(notice.title, FIELD_CHARS)}*"
    summary = _escaped(notice.fields["summary"], SECTION_CHARS)
    facts = {
        "Drifted": notice.share,
        "Cause": notice.fields["cause"],
        "Looks like": {"sensor": "the sensor", "content": "what it shows"}.get(notice.fields["triage"] or "", ""),
        "Since": notice.fields["since"],
        "Monitor": notice.fields["monitor"],
    }
    blocks: list[dict[str, Any]] = [
        {"type": "section", "text": _markdown(f"{headline}\n{summary}")},
        {
            "type": "section",
            "fields": [_markdown(f"*{name}*\n{_escaped(text, FIELD_CHARS)}") for name, text in facts.items() if text],
        },
    ]
    links = [
        f"<{url}|{name}>" for name in ("status", "dashboard") if 0 < len(url := _url(notice.link(name))) <= LINK_CHARS
    ]
    if links:
        blocks.append({"type": "context", "elements": [_markdown(" · ".join(links))]})
    return {"text": f"{headline} {summary}", "blocks": blocks}


def _markdown(text: str) -> dict[str, str]:
    return {"type": "mrkdwn", "text": text}


def _escaped(text: object, chars: int) -> str:
    """Cut, then escaped: a stream called `<!channel>` must not call the channel."""
    cut = str(text) if len(str(text)) <= chars else f"{str(text)[: chars - 1]}…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _url(url: str) -> str:
    for character in "<>|":
        url = url.replace(character, f"%{ord(character):02X}")
    return url.replace("&", "&amp;")
