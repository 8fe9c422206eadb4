"""The sinks, written before a batch is applied: the dead letters, then the image log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import structlog

from monitor.ingest.batch import Batch
from monitor.ingest.image_log import ImageLog
from monitor.notify.self_alerts import DEAD_LETTERS, VERDICTS, SelfAlerts
from monitor.sources.protocol import FatalSourceError, Source, SourceError
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

ALERT_TRIES = 3
"""Failed tries of one batch before an alert is raised."""
IMAGE_LOG = "verdicts"
"""Subject of the alert about an image log that cannot be written."""


class SinkError(Exception):
    """A sink did not acknowledge; the batch must not be applied yet."""


class Sinks:
    """Writes the dead letters and the image log; belongs to the consumer's thread.

    Args:
        image_log: None where none is configured.
    """

    def __init__(self, image_log: ImageLog | None, alerts: SelfAlerts) -> None:
        self.image_log, self._alerts = image_log, alerts
        self.failing: dict[str, str] = {}
        """Name of the alert about a sink that cannot be written -> the text for the readiness probe."""
        self.unlogged: Counter[str] = Counter()
        """Reason -> letters that were written and not logged yet."""

    def write(self, source: Source, batch: Batch) -> None:
        """Return when all sinks have acknowledged. What is acknowledged is removed from the batch: no retry repeats it.

        Raises:
            SinkError: a sink has not acknowledged; retry later.
        """
        # fatal errors are retried too: the operator may create the topic or grant rights, and nothing is scored twice
        if batch.letters:
            failpoint("before_letters")
            try:
                source.dead_letter(batch.letters)
            except (SourceError, FatalSourceError) as error:
                metrics.DEAD_LETTER_ERRORS.inc()
                log.warning("dead_letters.failed", letters=len(batch.letters), tries=batch.tries + 1, error=str(error))
                self.failing[DEAD_LETTERS] = "dead letters cannot be written, and reading waits for them"
                topic = batch.letters[0].record.partition.topic
                text = f"{topic}: dead letters cannot be written, and reading waits: {error}"
                raise self._failed(batch, DEAD_LETTERS, topic, text) from error
            self.failing.pop(DEAD_LETTERS, None)
            failpoint("after_letters")
            for letter in batch.letters:
                metrics.RECORDS_REJECTED.labels(letter.reason).inc()
            self.unlogged.update(letter.reason for letter in batch.letters)
            batch.letters = ()
        if batch.lines and self.image_log is not None:
            try:
                self.image_log.write(batch.lines)
            except (SourceError, FatalSourceError) as error:
                metrics.VERDICT_ERRORS.inc()
                log.warning("verdicts.failed", lines=len(batch.lines), tries=batch.tries + 1, error=str(error))
                self.failing[VERDICTS] = "per-image verdicts cannot be written, and reading waits for them"
                text = f"verdicts cannot be written, and reading waits: {error}"
                raise self._failed(batch, VERDICTS, IMAGE_LOG, text) from error
            self.failing.pop(VERDICTS, None)
            metrics.VERDICTS_WRITTEN.inc(len(batch.lines))
            batch.lines = ()

    def _failed(self, batch: Batch, rule: str, subject: str, text: str) -> SinkError:
        if batch.tries + 1 == ALERT_TRIES:
            self._alerts.try_to_raise(rule, subject, text)
        return SinkError(text)

    def log_letters(self) -> None:
        """One line about all letters since the last one: a line for each could fill the whole log."""
        if self.unlogged:
            log.info("dead_letters.written", letters=self.unlogged.total(), reasons=dict(self.unlogged))
            self.unlogged.clear()

    def close(self) -> None:
        """Log the letters that were written, and close the image log."""
        self.log_letters()
        if self.image_log is not None:
            self.image_log.close()

    def end_alerts(self, topics: Iterable[str]) -> None:
        """End the alerts about sinks that work, whichever process raised them.

        Raises:
            StoreError: Redis does not answer; retry later.
        """
        for rule, subjects in ((DEAD_LETTERS, sorted(set(topics))), (VERDICTS, [IMAGE_LOG])):
            if rule not in self.failing:
                self._alerts.end(subjects, rule)
