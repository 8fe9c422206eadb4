"""`layerwatch produce`: writes images to the configured source, for tests, demos and backfills."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from detectors.images.reading import InputError, read_images
from monitor.cli.options import IMAGES_HELP, TIME_HELP, add_config_option, parse_time
from monitor.config.errors import EXIT_UNAVAILABLE, as_command_error
from monitor.config.loading import load_config
from monitor.sources import Producer, open_producer
from monitor.sources.protocol import FatalSourceError, SourceError
from monitor.telemetry.clock import wall_ms

CONTENT_TYPES = {
    ".jpg": b"image/jpeg",
    ".jpeg": b"image/jpeg",
    ".png": b"image/png",
    ".webp": b"image/webp",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", help=IMAGES_HELP)
    parser.add_argument("--stream", required=True, help="key of the records")
    parser.add_argument("--rate", type=_rate, help="images per second (default: as fast as the broker takes them)")
    parser.add_argument(
        "--start-time",
        type=parse_time,
        metavar="TIME",
        help=f"timestamp of the first image ({TIME_HELP}); each next one is 1/rate s later, "
        "1 s without --rate, and nothing is waited for (default: now)",
    )
    parser.add_argument("--topic", help="default: the first topic of the configuration")
    add_config_option(parser)


def run(args: argparse.Namespace) -> int:
    source = load_config(args.config).source_settings()
    topic = args.topic or source.section.topics[0]
    with (
        as_command_error("produce", InputError),
        as_command_error("produce", SourceError, FatalSourceError, status=EXIT_UNAVAILABLE),
        closing(open_producer(source)) as producer,
    ):
        sent = send_images(producer, topic, args.stream, read_images(args.images), args.rate, args.start_time)
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
        images: (name, encoded bytes); the name's suffix gives the `content-type` header.
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
    """Endless, in ms. Without `start_ms` a timestamp is the time of sending, and each one is waited for."""
    step_s = 1.0 / (rate or 1.0)
    began = time.monotonic()
    for sent in itertools.count():
        if start_ms is not None:
            yield start_ms + round(1000 * step_s * sent)
            continue
        due = began + step_s * sent
        if rate is not None and due > time.monotonic():
            producer.flush()  # nothing waits in a buffer while we sleep
            time.sleep(max(0.0, due - time.monotonic()))
        yield wall_ms()


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"must be greater than 0 (got {text})")
    return rate
