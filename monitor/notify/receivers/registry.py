"""From a receiver's settings to the receiver."""

from __future__ import annotations

from collections.abc import Callable

from monitor.config.schema import (
    AlertmanagerReceiver,
    AnyReceiver,
    KafkaReceiver,
    PagerDutyReceiver,
    SlackReceiver,
    WebhookReceiver,
)
from monitor.notify.receivers.alertmanager import AlertmanagerSender
from monitor.notify.receivers.kafka_topic import KafkaTopicSender
from monitor.notify.receivers.pagerduty import PagerDutySender
from monitor.notify.receivers.protocol import Receiver
from monitor.notify.receivers.slack import SlackSender
from monitor.notify.receivers.webhook import WebhookSender
from monitor.sources import Producer


def build_receiver(settings: AnyReceiver, monitor: str, open_producer: Callable[[], Producer]) -> Receiver:
    """The receiver of these settings; connects to nothing.

    Args:
        open_producer: called for a Kafka receiver only; must give a new one each time, which the receiver closes.

    Raises:
        ReceiverConfigError: a URL, header or secret cannot be used; the message names the key.
    """
    match settings:
        case WebhookReceiver():
            return WebhookSender(settings)
        case AlertmanagerReceiver():
            return AlertmanagerSender(settings)
        case SlackReceiver():
            return SlackSender(settings)
        case PagerDutyReceiver():
            return PagerDutySender(settings)
        case KafkaReceiver():
            return KafkaTopicSender(settings, monitor, open_producer())
