"""`layerwatch produce`: writes images to the configured source, for tests, demos and backfills."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectors.images.reading import InputError, read_images
from monitor.cli.times import TIME_HELP, parse_time
from monitor.config.errors import EXIT_UNAVAILABLE
from monitor.config.loading import load_config
from monitor.sources import Producer, open_producer
from monitor.sources.protocol import FatalSourceError, SourceError

CONTENT_TYPES = {
    ".jpg": b"image/jpeg",
    ".jpeg": b"image/jpeg",
    ".png": b"image/png",
    ".webp": b"image/webp",
}


def add_command(commands: Any) -> None:
    """Add `produce` to an argparse subparser table; it sets `handler(args) -> exit status`."""
    produce = commands.add_parser("produce", help="write images to the configured source, one record each")
    produce.add_argument("images", nargs="+", help="folders, tar files or image files")
    produce.add_argument("--stream", required=True, help="key of the records")
    produce.add_argument("--rate", type=_rate, help="images per second (default: as fast as the broker takes them)")
    produce.add_argument(
        "--start-time",
        type=parse_time,
        metavar="TIME",
        help=f"timestamp of the first image ({TIME_HELP}); each next one is 1/rate s later, "
        "1 s without --rate, and nothing is waited for (default: now)",
    )
    produce.add_argument("--topic", help="default: the first topic of the configuration")
    produce.add_argument(
        "-c", "--config", type=Path, default=Path("config.yaml") if Path("config.yaml").exists() else None
    )
    produce.set_defaults(handler=_produce)


def _produce(args: argparse.Namespace) -> int:
    config = load_config(args.config)
    source = config.source_settings()
    topic = args.topic or source.section.topics[0]
    producer = open_producer(source)
    try:
        sent = send_images(producer, topic, args.stream, read_images(args.images), args.rate, args.start_time)
    except InputError as error:
        sys.stderr.write(f"layerwatch produce: {error}\n")
        return 1
    except (SourceError, FatalSourceError) as error:
        sys.stderr.write(f"layerwatch produce: {error}\n")
        return EXIT_UNAVAILABLE
    finally:
        producer.close()
    sys.stdout.write(f"{sent} images written to {topic} as {args.stream}\n")
    return 0


def send_images(
    producer: Producer,
    topic: str,
    stream: str,
    images: Iterable[tuple[str, bytes]],
    rate: float | None = None,
    start_ms: int | None = None,
) -> int:
    """Write every image as one record keyed by the stream, and wait until all are acknowledged; returns how many.

    Args:
        images: (name, encoded bytes); the name's suffix tells the `content-type` header.
        rate: images per second. Without `start_ms` they are sent at that pace; with it they are stamped at that pace.
        start_ms: timestamp of the first; None stamps each with the time of sending.

    Raises:
        InputError: from `images`; what was read before it is written.
        SourceError, FatalSourceError: not all could be written.
    """
    sent = 0
    try:
        for (name, image), stamp in zip(images, _timestamps(rate, start_ms, producer), strict=False):
            header = ("content-type", CONTENT_TYPES[Path(name).suffix.lower()])
            producer.send(topic, image, stream.encode(), [header, ("filename", name.encode("utf-8", "replace"))], stamp)
            sent += 1
    finally:
        producer.flush()
    return sent


def _timestamps(rate: float | None, start_ms: int | None, producer: Producer) -> Iterator[int]:
    """Endless; waits for the moment of the next one where that is now."""
    step_s = 1.0 if rate is None else 1.0 / rate
    began = time.monotonic()
    sent = 0
    while True:
        if start_ms is not None:
            yield start_ms + round(1000 * step_s * sent)
        else:
            early_s = began + step_s * sent - time.monotonic() if rate is not None else 0.0
            if early_s > 0:
                producer.flush()  # nothing waits in a buffer while we sleep
                time.sleep(max(0.0, began + step_s * sent - time.monotonic()))
            yield time.time_ns() // 1_000_000
        sent += 1


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"must be greater than 0 (got {text})")
    return rate
