"""The kinds of receivers; docs/how-to/add-a-receiver.md adds one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from monitor.notify.receivers.alertmanager import AlertmanagerSettings
from monitor.notify.receivers.kafka_topic import KafkaTopicSettings
from monitor.notify.receivers.pagerduty import PagerDutySettings
from monitor.notify.receivers.protocol import ReceiverSettings
from monitor.notify.receivers.slack import SlackSettings
from monitor.notify.receivers.webhook import WebhookSettings

RECEIVERS: tuple[type[ReceiverSettings], ...] = (
    WebhookSettings,
    AlertmanagerSettings,
    SlackSettings,
    PagerDutySettings,
    KafkaTopicSettings,
)
"""Every kind of receiver that a configuration may name, in the order of the reference page."""


def any_receiver(kinds: Iterable[type[ReceiverSettings]]) -> Any:
    """The type of one entry of the `receivers` section, told apart by `type`."""
    return Annotated[reduce(or_, kinds), Field(discriminator="type")]


if TYPE_CHECKING:
    AnyReceiver = ReceiverSettings
else:
    AnyReceiver = any_receiver(RECEIVERS)
