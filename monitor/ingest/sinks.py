"""What leaves before a batch counts: its dead letters, then its verdicts. What is not acknowledged keeps it waiting."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from monitor.ingest.batch import Batch
from monitor.ingest.image_log import SUBJECT, ImageLog
from monitor.ingest.maintenance import Health, now_ms
from monitor.notify.self_alerts import DEAD_LETTERS, VERDICTS, SelfAlerts
from monitor.sources.protocol import FatalSourceError, Source, SourceError
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

ALERT_TRIES = 3
"""Failed tries after which people hear of it."""


class Sinks:
    """Owned by the reader's thread; `health` is the reader's own.

    Args:
        verdicts: None where nobody wants them.
    """

    def __init__(self, verdicts: ImageLog | None, alerts: SelfAlerts, health: Health) -> None:
        self._verdicts, self._alerts, self._health = verdicts, alerts, health

    def write(self, source: Source, batch: Batch) -> bool:
        """Whether the batch may be applied; else call again after a while: what has left does not leave again."""
        return self._write_letters(source, batch) and self._write_verdicts(batch)

    def _write_letters(self, source: Source, batch: Batch) -> bool:
        if not batch.letters:
            return True
        failpoint("before_letters")
        topic = batch.letters[0].record.partition.topic
        error = _failure_of(lambda: source.dead_letter(batch.letters))
        self._health.letters_ok = error is None
        if error is not None:
            log.warning("dead_letters.failed", letters=len(batch.letters), tries=batch.tries + 1, error=str(error))
            metrics.DEAD_LETTER_ERRORS.inc()
            self._wait(
                batch, DEAD_LETTERS, topic, f"{topic}: dead letters cannot be written, and reading waits: {error}"
            )
            return False
        failpoint("after_letters")
        for letter in batch.letters:
            metrics.RECORDS_REJECTED.labels(letter.reason).inc()
        batch.letters = []
        return True

    def _write_verdicts(self, batch: Batch) -> bool:
        if self._verdicts is None or not batch.verdicts:
            return True
        sink, lines = self._verdicts, batch.verdicts
        error = _failure_of(lambda: sink.write(lines))
        self._health.verdicts_ok = error is None
        if error is not None:
            log.warning("verdicts.failed", lines=len(lines), tries=batch.tries + 1, error=str(error))
            metrics.VERDICT_ERRORS.inc()
            self._wait(batch, VERDICTS, SUBJECT, f"verdicts cannot be written, and reading waits: {error}")
            return False
        metrics.VERDICTS_WRITTEN.inc(len(lines))
        batch.verdicts = []
        return True

    def _wait(self, batch: Batch, rule: str, subject: str, text: str) -> None:
        self._health.moved_s = time.monotonic()  # not stuck: waiting, and saying so
        batch.try_later()
        if batch.tries == ALERT_TRIES:
            self._alerts.tell_if_possible(rule, subject, now_ms(), text)


def _failure_of(write: Callable[[], None]) -> SourceError | FatalSourceError | None:
    """Fatal ones too: people make topics and grant rights while we wait, and what is scored is not scored again."""
    try:
        write()
    except (SourceError, FatalSourceError) as error:
        return error
    return None
