"""From a receiver's settings to the receiver."""

from __future__ import annotations

from collections.abc import Callable

from monitor.notify.receivers.alertmanager import AlertmanagerSender
from monitor.notify.receivers.kafka_topic import KafkaTopicSender
from monitor.notify.receivers.pagerduty import PagerDutySender
from monitor.notify.receivers.protocol import Receiver
from monitor.notify.receivers.settings import (
    AlertmanagerSettings,
    AnyReceiverSettings,
    KafkaTopicSettings,
    PagerDutySettings,
    SlackSettings,
    WebhookSettings,
)
from monitor.notify.receivers.slack import SlackSender
from monitor.notify.receivers.webhook import WebhookSender
from monitor.sources import Producer


def build_receiver(settings: AnyReceiverSettings, monitor: str, open_producer: Callable[[], Producer]) -> Receiver:
    """The receiver of these settings; connects to nothing.

    Args:
        open_producer: called for a Kafka receiver only; must give a new one each time, which the receiver closes.

    Raises:
        ReceiverConfigError: a URL, header or secret cannot be used; the message names the key.
    """
    match settings:
        case WebhookSettings():
            return WebhookSender(settings)
        case AlertmanagerSettings():
            return AlertmanagerSender(settings)
        case SlackSettings():
            return SlackSender(settings)
        case PagerDutySettings():
            return PagerDutySender(settings)
        case KafkaTopicSettings():
            return KafkaTopicSender(settings, monitor, open_producer())
