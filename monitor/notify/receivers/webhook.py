"""A webhook after the Standard Webhooks specification: the document as it is, signed."""

from __future__ import annotations

import base64
import binascii
import time
from datetime import UTC, datetime

from standardwebhooks import Webhook

from monitor.notify.receivers.http_client import Endpoint
from monitor.notify.receivers.notice import parse_notice
from monitor.notify.receivers.protocol import Outcome, ReceiverConfigError
from monitor.notify.receivers.settings import WebhookSettings


class WebhookSender:
    """POSTs documents with `webhook-id` (the document's id on every try), `webhook-timestamp` and `webhook-signature`.

    Raises:
        ReceiverConfigError: the URL, a header or the secret cannot be used.
    """

    def __init__(self, settings: WebhookSettings) -> None:
        self.name = settings.name
        self.send_resolved = settings.send_resolved
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        key = f"receivers.{settings.name}"
        self._signer = _signer(key, settings.secret.get_secret_value()) if settings.secret else None
        self._endpoint = Endpoint(f"{key}.url", settings.url, settings.timeout_s, headers)

    def send(self, document: str, attempt: int) -> Outcome:
        """Try once. The timestamp is that of the try: receivers refuse signatures older than some minutes."""
        del attempt
        message_id, now_s = parse_notice(document).id, int(time.time())
        headers = {"webhook-id": message_id, "webhook-timestamp": str(now_s)}
        if self._signer:
            at = datetime.fromtimestamp(now_s, UTC)
            headers["webhook-signature"] = self._signer.sign(msg_id=message_id, timestamp=at, data=document)
        return self._endpoint.post(document, headers)

    def close(self) -> None:
        """Free the connections."""
        self._endpoint.close()


def _signer(key: str, secret: str) -> Webhook:
    coded = secret.removeprefix("whsec_")
    try:
        # checked here: the library leaves out what is no base64, so a typing mistake would sign with another key
        known = base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True)
    except binascii.Error:
        known = b""
    if not known or coded == secret:
        raise ReceiverConfigError(f"{key}.secret: must be whsec_ and base64")
    return Webhook(known)
