"""Alerts to people and machines: one file per receiver, and the dispatcher that brings them what the outbox holds.

A receiver is sent the alert document as the evaluator wrote it, at least once, always with the same id. It says what
became of the try; when and how often to try again is the dispatcher's business.
"""

from monitor.notify.delivery.dispatcher import Dispatcher
from monitor.notify.delivery.schedule import STANDARD_WEBHOOKS_S, Timing
from monitor.notify.receivers.protocol import (
    Delivered,
    Outcome,
    Receiver,
    ReceiverConfigError,
    Refused,
    Resending,
    Retry,
)
from monitor.notify.receivers.registry import build_receiver

__all__ = [
    "STANDARD_WEBHOOKS_S",
    "Delivered",
    "Dispatcher",
    "Outcome",
    "Receiver",
    "ReceiverConfigError",
    "Refused",
    "Resending",
    "Retry",
    "Timing",
    "build_receiver",
]
