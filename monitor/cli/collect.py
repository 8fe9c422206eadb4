"""`fit` and `calibrate` on a stream's own past: `--from-stream NAME --since 24h [--max-images N]`."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.images.reading import InputError, read_images
from monitor.cli.run import add_config_option
from monitor.config.loading import load_config
from monitor.config.schema import Config
from monitor.ingest.decode.records import DecodeError, expand, stream_of
from monitor.sources.protocol import FatalSourceError, SourceError

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_options(commands: Any) -> None:
    """Let `fit` and `calibrate` read from the configured source too."""
    for name in ("fit", "calibrate"):
        command = commands.choices[name]
        command.add_argument("--from-stream", metavar="NAME", help="learn from what the source still holds of a stream")
        command.add_argument("--since", default="24h", type=duration_s, help="how far back: 30m, 24h, 7d (24h)")
        command.add_argument("--max-images", type=int, default=20_000, help="stop after that many (20000)")
        add_config_option(command)
        command.set_defaults(read=_read)


def duration_s(text: str) -> float:
    """`30m`, `24h`, `7d` in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 30m, 24h or 7d")
    return float(found[1]) * UNITS_S[found[2]]


def collect(
    settings: Config, stream: str, since_ms: int, max_images: int
) -> Iterator[tuple[str, bytes | NDArray[np.uint8]]]:
    """(id, image) of the stream's images, oldest first within each partition; broken records are left out.

    Raises:
        InputError: the source is away, or holds nothing of that stream.
    """
    from monitor.sources.read_back import read_back  # noqa: PLC0415 - loads the broker's client

    found = 0
    try:
        for record in read_back(settings, since_ms):
            if stream_of(record, settings.stream) != stream:
                continue
            try:
                images = expand(record, settings.stream, settings.decoding)
            except DecodeError:
                continue
            for image in images:
                yield image.id, image.image
                found += 1
                if found >= max_images:
                    return
    except (SourceError, FatalSourceError) as error:
        raise InputError(str(error)) from error
    if not found:
        raise InputError(f"the source holds no image of stream {stream!r} in that time")


def _read(args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    if args.from_stream and args.images:
        raise InputError("give either images or --from-stream, not both")
    if args.from_stream:
        since_ms = time.time_ns() // 1_000_000 - round(args.since * 1000)
        return collect(load_config(args.config), args.from_stream, since_ms, args.max_images)
    if not args.images:
        raise InputError("no images given: name folders, tar files or image files, or --from-stream NAME")
    return read_images(args.images)
