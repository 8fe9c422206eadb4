"""The sinks of a batch, written before it is applied: its dead letters, then its lines of the image log."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from monitor.ingest.batch import Batch
from monitor.ingest.image_log import SUBJECT, ImageLog
from monitor.ingest.work import wall_clock_ms
from monitor.notify.self_alerts import DEAD_LETTERS, VERDICTS, SelfAlerts
from monitor.sources.protocol import FatalSourceError, Source, SourceError
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

ALERT_TRIES = 3
"""Failed tries of one batch after which an alert is raised."""


class SinkError(Exception):
    """A sink does not acknowledge; the batch must not be applied yet."""


class Sinks:
    """Writes what leaves beside the counts; belongs to the consumer's thread.

    Args:
        image_log: None where none is configured.
    """

    def __init__(self, image_log: ImageLog | None, alerts: SelfAlerts) -> None:
        self.image_log, self._alerts = image_log, alerts
        self.letters_ok = self.image_log_ok = True
        """Whether the last write succeeded."""

    def write(self, source: Source, batch: Batch) -> None:
        """Return when all sinks have acknowledged; the batch forgets what is acknowledged, so that no try repeats it.

        Raises:
            SinkError: one has not; call again after a while.
        """
        self._write_letters(source, batch)
        self._write_lines(batch)

    def _write_letters(self, source: Source, batch: Batch) -> None:
        if not batch.letters:
            return
        failpoint("before_letters")
        try:
            source.dead_letter(batch.letters)
        except (SourceError, FatalSourceError) as error:
            # fatal ones too: the operator creates topics and grants rights meanwhile, and nothing is scored twice
            self.letters_ok = False
            log.warning("dead_letters.failed", letters=len(batch.letters), tries=batch.tries + 1, error=str(error))
            metrics.DEAD_LETTER_ERRORS.inc()
            topic = batch.letters[0].record.partition.topic
            text = f"{topic}: dead letters cannot be written, and reading waits: {error}"
            raise self._failed(batch, DEAD_LETTERS, topic, text) from error
        self.letters_ok = True
        failpoint("after_letters")
        for letter in batch.letters:
            metrics.RECORDS_REJECTED.labels(letter.reason).inc()
        batch.letters = ()

    def _write_lines(self, batch: Batch) -> None:
        if self.image_log is None or not batch.lines:
            return
        try:
            self.image_log.write(batch.lines)
        except (SourceError, FatalSourceError) as error:
            self.image_log_ok = False
            log.warning("verdicts.failed", lines=len(batch.lines), tries=batch.tries + 1, error=str(error))
            metrics.VERDICT_ERRORS.inc()
            text = f"verdicts cannot be written, and reading waits: {error}"
            raise self._failed(batch, VERDICTS, SUBJECT, text) from error
        self.image_log_ok = True
        metrics.VERDICTS_WRITTEN.inc(len(batch.lines))
        batch.lines = ()

    def _failed(self, batch: Batch, rule: str, subject: str, text: str) -> SinkError:
        if batch.tries + 1 == ALERT_TRIES:
            self._alerts.tell_if_possible(rule, subject, wall_clock_ms(), text)
        return SinkError(text)

    def end_alerts(self, topics: Iterable[str]) -> None:
        """End the alerts about sinks that work, whichever process raised them.

        Raises:
            StoreError: call again.
        """
        if self.letters_ok:
            self._alerts.end(wall_clock_ms(), sorted(set(topics)), DEAD_LETTERS)
        if self.image_log_ok:
            self._alerts.end(wall_clock_ms(), [SUBJECT], VERDICTS)

    def close(self) -> None:
        """Free everything; never raises."""
        if self.image_log is not None:
            self.image_log.close()
