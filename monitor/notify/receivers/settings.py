"""The entries of the `receivers` section of the configuration, one class per type."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from monitor.core.settings import Names, Secret, Section


class ReceiverSettings(Section):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    timeout_s: PositiveFloat = 10.0
    send_resolved: bool = True


class WebhookSettings(ReceiverSettings):
    """Standard Webhooks: signed POST of the alert document."""

    type: Literal["webhook"]
    url: str
    secret: Secret | None = None
    """`whsec_` + base64; without one the request is not signed."""
    headers: dict[str, Secret] = Field(default_factory=dict)


class AlertmanagerSettings(ReceiverSettings):
    type: Literal["alertmanager"]
    urls: Annotated[Names, Field(min_length=1)]
    """Every instance of the cluster: they deduplicate among themselves."""
    resend_s: PositiveFloat = 60.0
    username: str | None = None
    password: Secret | None = None
    bearer_token: Secret | None = None


class SlackSettings(ReceiverSettings):
    type: Literal["slack"]
    url: Secret


class PagerDutySettings(ReceiverSettings):
    type: Literal["pagerduty"]
    routing_key: Secret
    url: str = "https://events.pagerduty.com/v2/enqueue"


class KafkaTopicSettings(ReceiverSettings):
    """CloudEvents in binary mode on a topic of the same cluster, keyed by the alert."""

    type: Literal["kafka"]
    topic: str = "layerwatch.alerts"


AnyReceiverSettings = Annotated[
    WebhookSettings | AlertmanagerSettings | SlackSettings | PagerDutySettings | KafkaTopicSettings,
    Field(discriminator="type"),
]
