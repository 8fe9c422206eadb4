"""What bounds the state in Redis."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from monitor.core.steps import DAY_MS, Step, steps_of

WAIT_MS = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the state in time and space; from the configuration."""

    bucket_ms: int = 10_000
    retention_s: int = 7 * 86_400
    """After so long without a record a stream is forgotten."""
    max_streams: int = 10_000
    """Per partition: one script sees one partition only. Streams that `Partitions.forget` removed do not count."""
    exemplars_kept: int = 12
    """Per stream and hour."""
    exemplar_retention_s: int = 7 * 86_400
    steps: tuple[Step, ...] = steps_of(10_000, (), 90 * DAY_MS)
    """Of the history of counts."""

    @property
    def kept_s(self) -> int:
        """How long a bucket is kept that nobody rolls up: while no process runs, none is lost."""
        fine_ms = self.steps[0].until_ms
        return (fine_ms if len(self.steps) == 1 else max(WAIT_MS, 2 * fine_ms)) // 1000

    def for_scripts(self) -> dict[str, int]:
        """What apply.lua reads."""
        numbers = asdict(replace(self, steps=()))
        del numbers["steps"]
        return {**numbers, "kept_s": self.kept_s}
