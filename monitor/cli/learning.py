"""What `fit` and `calibrate` share: images from files or from a stream's own past, progress, what was left out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from detectors.images.prepare import AnyImage
from detectors.images.reading import InputError, read_images
from monitor.cli.options import add_config_option, parse_duration
from monitor.config.loading import load_config
from monitor.config.schema import Config
from monitor.ingest.decode.records import DecodeError, expand, stream_of
from monitor.sources.protocol import FatalSourceError, SourceError
from monitor.sources.read_back import read_back
from monitor.telemetry.clock import wall_ms


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    """Let a command read its images from the configured source: `--from-stream NAME --since 24h [--max-images N]`."""
    parser.add_argument("--from-stream", metavar="NAME", help="learn from what the source still holds of a stream")
    parser.add_argument("--since", default="24h", type=parse_duration, help="how far back: 30m, 24h, 7d (24h)")
    parser.add_argument("--max-images", type=int, default=20_000, help="stop after that many (20000)")
    add_config_option(parser)


def images_of(args: argparse.Namespace) -> Iterator[tuple[str, AnyImage]]:
    """The images of `fit` and `calibrate`: of the named inputs, or of a stream.

    Raises:
        InputError: both are given, or neither.
    """
    if args.from_stream and args.images:
        raise InputError("give either images or --from-stream, not both")
    if args.from_stream:
        since_ms = wall_ms() - round(args.since * 1000)
        return collect(load_config(args.config), args.from_stream, since_ms, args.max_images)
    if not args.images:
        raise InputError("no images given: name folders, tar files or image files, or --from-stream NAME")
    return read_images(args.images)


def collect(settings: Config, stream: str, since_ms: int, max_images: int) -> Iterator[tuple[str, AnyImage]]:
    """(id, image) of the stream's images, oldest first within each partition; broken records are left out.

    Raises:
        InputError: the source does not answer, or holds nothing of that stream.
    """
    found = 0
    try:
        for record in read_back(settings.source_settings(), since_ms):
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


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[str, float], None]]:
    """A bar on the console, and the function that moves it: (step, share done; negative where unknown)."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading", total=None)

        def show(step: str, share: float) -> None:
            bar.update(task, description=step, total=None if share < 0 else 1.0, completed=max(share, 0.0))

        yield show


def print_left_out(console: Console, facts: dict[str, Any]) -> None:
    """How many images of a manifest were not used, with some names."""
    for name in ("broken", "duplicates"):
        if count := facts["images"][name]:
            more = "" if count <= len(facts[name]) else ", ..."
            console.print(f"left out {count} {name}: {', '.join(facts[name])}{more}", markup=False, soft_wrap=True)
