"""What `fit` and `calibrate` share: images from files or from a stream's own past, what was left out."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rich.console import Console

from detectors.images.prepare import AnyImage
from detectors.images.reading import InputError, read_images
from monitor.cli.options import DURATION_HELP, add_config_option, parse_count, parse_duration
from monitor.config.loading import load_config
from monitor.config.schema import Config
from monitor.ingest.decode.records import expand, stream_of
from monitor.ingest.decode.remote import UnavailableError
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.decode.wrapped import ValueReader
from monitor.sources.protocol import FatalSourceError, SourceError
from monitor.sources.read_back import read_back
from monitor.telemetry.clock import wall_ms

SINCE_S = 24 * 3600
STREAM_IMAGES = 20_000
"""A day and that many images of a stream, unless options say otherwise: its log may hold millions."""


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    """`--max-images N`, and where to read from instead of files: `--from-stream NAME [--since 24h]`."""
    parser.add_argument("--from-stream", metavar="NAME", help="learn from what the source still holds of a stream")
    parser.add_argument(
        "--since", type=parse_duration, metavar="DURATION", help=f"how far back in the stream: {DURATION_HELP} (24h)"
    )
    parser.add_argument(
        "--max-images",
        type=parse_count,
        metavar="N",
        help=f"stop after that many ({STREAM_IMAGES} of a stream, all images of files)",
    )
    add_config_option(parser)


def images_of(args: argparse.Namespace) -> Iterator[tuple[str, AnyImage]]:
    """The images of `fit` and `calibrate`: of the named inputs, or of a stream.

    Raises:
        InputError: both are given, or neither; or an option that concerns streams alone is given with files.
    """
    if args.from_stream and args.images:
        raise InputError("give either images or --from-stream, not both")
    if args.from_stream:
        since_ms = wall_ms() - round((args.since or SINCE_S) * 1000)
        found = collect(load_config(args.config), args.from_stream, since_ms)
        return islice(found, args.max_images or STREAM_IMAGES)
    if not args.images:
        raise InputError("no images given: name folders, tar files or image files, or --from-stream NAME")
    if args.since:
        raise InputError("--since says how far back to read a stream: it needs --from-stream NAME")
    return islice(read_images(args.images), args.max_images)


def collect(settings: Config, stream: str, since_ms: int) -> Iterator[tuple[str, AnyImage]]:
    """(id, image) of the stream's images, oldest first within each partition; broken records are left out.

    Raises:
        InputError: the source does not answer, or holds nothing of that stream.
    """
    reader = ValueReader(settings.decoding, settings.value)
    found = False
    try:
        for record in read_back(settings.source_settings(), since_ms):
            if stream_of(record, settings.stream) != stream:
                continue
            try:
                images = expand(record, settings.stream, reader)
            except DecodeError:
                continue
            for image in images:
                found = True
                yield image.id, image.image
    except (SourceError, FatalSourceError, UnavailableError) as error:
        raise InputError(str(error)) from error
    if not found:
        raise InputError(f"the source holds no image of stream {stream!r} in that time")


def print_left_out(console: Console, facts: dict[str, Any]) -> None:
    """How many images of a manifest were not used, with some names."""
    for name in ("broken", "duplicates"):
        if count := facts["images"][name]:
            more = "" if count <= len(facts[name]) else ", ..."
            console.print(f"left out {count} {name}: {', '.join(facts[name])}{more}", markup=False, soft_wrap=True)
