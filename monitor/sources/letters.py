"""Dead letters in any log: their identity and their headers."""

from __future__ import annotations

from monitor.core.types import DeadLetter

MAX_ERROR_CHARS = 2000


def letter_id(letter: DeadLetter) -> str:
    """`topic:partition:offset` of the record: the identity under which a dead letter lands once."""
    return f"{letter.record.partition}:{letter.record.offset}"


def origin_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The position of the record and the reason why it is here; bounded in size."""
    record = letter.record
    origin = {
        "topic": record.partition.topic,
        "partition": str(record.partition.index),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp_ms),
        "stream": letter.stream,
        "reason": letter.reason,
        "error": letter.error[:MAX_ERROR_CHARS],
    }
    # "replace": a name or text out of broken bytes may hold half a surrogate pair
    return [(f"layerwatch-{name}", value.encode("utf-8", "replace")) for name, value in origin.items()]


def letter_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The original headers, then those of `origin_headers` and the original key."""
    headers = [*letter.record.headers, *origin_headers(letter)]
    key = letter.record.key
    return headers if key is None else [*headers, ("layerwatch-key", key)]
