"""What every kind of receiver consists of: its settings, its sender, and the outcomes of a try."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveFloat

from monitor.core.settings import Section
from monitor.notify.receivers.notice import Notice
from monitor.sources import Producer

OpenProducer = Callable[[], Producer]
"""Gives a new producer for the source's broker at every call; the caller closes it."""


class ReceiverConfigError(Exception):
    """A receiver cannot be built from its settings; the message names the key and never shows a secret."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver has accepted the document."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The try failed and another one may succeed. `after_s`: the receiver asks for a pause of that length."""

    reason: str
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The try failed, and so will every other one with the same document, unless someone repairs the receiver."""

    reason: str


Outcome = Delivered | Retry | Refused


class ReceiverSettings(Section):
    """One entry of the `receivers` section; each kind adds its keys and `type: Literal[...]`, which names it."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    timeout_s: PositiveFloat = 10.0
    send_resolved: bool = True

    def build(self, open_producer: OpenProducer, /) -> Receiver:
        """The receiver of these settings; it does not connect yet.

        Raises:
            ReceiverConfigError: a URL, header or secret cannot be used.
        """
        raise NotImplementedError


class Receiver(ABC):
    """Sends alert documents to one place. Safe to share between threads; the reasons it gives hold no secret."""

    def __init__(self, settings: ReceiverSettings) -> None:
        self.name = settings.name
        self.send_resolved = settings.send_resolved

    @abstractmethod
    def send(self, notice: Notice) -> Outcome:
        """Try once; a receiver that does not answer is given up after `timeout_s`."""

    @abstractmethod
    def close(self) -> None:
        """Free connections; never raises."""


RESENT_TOGETHER = 200
"""Alerts in one request: a small part of what receivers accept, and short enough to be sent within the lease."""


class Resending(Receiver):
    """A receiver that ends an alert unless it gets it again every `resend_s` while it fires."""

    resend_s: float

    @abstractmethod
    def resend(self, notices: Sequence[Notice]) -> Outcome:
        """Send again what still fires: at most RESENT_TOGETHER, in one request."""


class Acknowledging(Receiver):
    """A receiver that keeps calling people until the alert is acknowledged."""

    @abstractmethod
    def acknowledge(self, notice: Notice) -> Outcome:
        """Acknowledge an alert that was delivered as firing."""
