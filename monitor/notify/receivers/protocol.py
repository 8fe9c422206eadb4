"""What a receiver is, and what it says of a try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class ReceiverConfigError(Exception):
    """A receiver cannot be built from its settings; the message names the key and never shows a secret."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not this time. `after_s`: the receiver has asked to be left alone for so long."""

    reason: str
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Never: sending the same again cannot succeed."""

    reason: str


Outcome = Delivered | Retry | Refused


class Receiver(Protocol):
    """Somewhere to send alert documents. Safe to share between threads; `reason`s hold no secret."""

    @property
    def name(self) -> str:
        """As configured; unique."""

    @property
    def send_resolved(self) -> bool:
        """Whether it wants to hear that an alert is over."""

    def send(self, document: str, attempt: int) -> Outcome:
        """Try once; gives up after the receiver's time-out without a sign of life. `attempt` counts from 1."""

    def close(self) -> None:
        """Free connections; never raises."""


@runtime_checkable
class Resending(Receiver, Protocol):
    """One that forgets an alert that it does not hear of again."""

    @property
    def resend_s(self) -> float:
        """How often it must hear."""

    def resend(self, documents: Sequence[str]) -> Outcome:
        """Say that these still fire."""


@runtime_checkable
class Acknowledging(Receiver, Protocol):
    """One that calls people until somebody says that they know."""

    def acknowledge(self, document: str) -> Outcome:
        """Say that somebody knows of this alert, which it was told fires."""
