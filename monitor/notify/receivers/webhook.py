"""A webhook as the Standard Webhooks specification describes it: the document unchanged, signed."""

from __future__ import annotations

import base64
import binascii
import time
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field
from standardwebhooks import Webhook

from monitor.core.settings import Secret
from monitor.notify.receivers.http_client import Endpoint
from monitor.notify.receivers.notice import Notice
from monitor.notify.receivers.protocol import OpenProducer, Outcome, Receiver, ReceiverConfigError, ReceiverSettings


class WebhookSettings(ReceiverSettings):
    """Standard Webhooks: signed POST of the alert document."""

    type: Literal["webhook"]
    url: Secret
    """A secret: services like chats put the key into the address."""
    secret: Secret | None = None
    """`whsec_` + base64; without one the request is not signed."""
    headers: dict[str, Secret] = Field(default_factory=dict)

    def build(self, _: OpenProducer, /) -> Receiver:
        return WebhookSender(self)


class WebhookSender(Receiver):
    """POSTs documents with `webhook-id` (the document's id), `webhook-timestamp` and `webhook-signature`."""

    def __init__(self, settings: WebhookSettings) -> None:
        super().__init__(settings)
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        secret = settings.secret and settings.secret.get_secret_value()
        self._signer = _signer(f"receivers.{settings.name}.secret", secret) if secret else None
        self._endpoint = Endpoint(settings, settings.url.get_secret_value(), headers=headers)

    def send(self, notice: Notice) -> Outcome:
        # the time of the try: receivers refuse signatures older than some minutes
        now_s = int(time.time())
        headers = {"webhook-id": notice.id, "webhook-timestamp": str(now_s)}
        if self._signer:
            at = datetime.fromtimestamp(now_s, UTC)
            headers["webhook-signature"] = self._signer.sign(msg_id=notice.id, timestamp=at, data=notice.document)
        return self._endpoint.post(notice.document, headers)

    def close(self) -> None:
        self._endpoint.close()


def _signer(key: str, secret: str) -> Webhook:
    coded = secret.removeprefix("whsec_")
    try:
        # checked here: the library skips what is not base64, so a typing mistake would sign with another key
        known = base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True)
    except binascii.Error:
        known = b""
    if not known or coded == secret:
        raise ReceiverConfigError(f"{key}: must be whsec_ and base64")
    return Webhook(known)
