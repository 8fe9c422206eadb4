"""What `fit` and `calibrate` share: images from files or from a stream's own past, what was left out."""

from __future__ import annotations

import argparse
import shlex
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from detectors.images.decode import ImageError
from detectors.images.prepare import AnyImage
from detectors.images.reading import SUFFIXES, InputError, read_images
from monitor.cli.options import DURATION_HELP, add_config_option, parse_count, parse_duration
from monitor.config.loading import load_config
from monitor.config.schema import Config
from monitor.core.types import Record, RecordImage
from monitor.ingest.decode.records import expand, stream_of
from monitor.ingest.decode.remote import UnavailableError
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.decode.wrapped import ValueReader
from monitor.sources.protocol import FatalSourceError, SourceError
from monitor.sources.read_back import read_back
from monitor.telemetry.clock import wall_ms

if TYPE_CHECKING:
    from detectors import Profile

Wanted = Callable[[Record, RecordImage], bool]
"""Whether an image of a stream is learned from."""
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


def images_of(
    args: argparse.Namespace, wanted: Callable[[Config], Wanted] = lambda _: lambda _record, _image: True
) -> Iterable[tuple[str, AnyImage]]:
    """The images of `fit` and `calibrate`: of the named inputs, or of a stream.

    Args:
        wanted: which images of a stream, by the configuration.

    Raises:
        InputError: both are given, or neither; or an option that concerns streams alone is given with files.
    """
    if args.from_stream and args.images:
        raise InputError("give either images or --from-stream, not both")
    if args.from_stream:
        since_ms = wall_ms() - round((args.since or SINCE_S) * 1000)
        settings = load_config(args.config)
        found = collect(settings, args.from_stream, since_ms, wanted(settings))
        return islice(found, args.max_images or STREAM_IMAGES)
    if not args.images:
        raise InputError("no images given: name folders, tar files or image files, or --from-stream NAME")
    if args.since:
        raise InputError("--since says how far back to read a stream: it needs --from-stream NAME")
    return _Files(tuple(args.images), args.max_images)


@dataclass(frozen=True)
class _Files:
    """The images of inputs, in their order; about how many they are is known before they are read."""

    inputs: tuple[str, ...]
    most: int | None

    def __iter__(self) -> Iterator[tuple[str, AnyImage]]:
        return islice(read_images(self.inputs), self.most)

    def __length_hint__(self) -> int:
        """0 where that is not known without reading them."""
        counts = [_about(Path(item)) for item in self.inputs]
        return min(sum(counts), self.most or sys.maxsize) if all(counts) else 0


def _about(path: Path) -> int:
    """How many images a folder or a plain tar file holds, the latter by the size of the first hundred."""
    try:
        if path.is_dir():
            return sum(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))
        if path.suffix.lower() in SUFFIXES:
            return 1
        with tarfile.open(path, "r:") as archive:
            first = [member for member in islice(archive, 100) if member.isfile()]
            return round(path.stat().st_size / (archive.offset / len(first))) if first else 0
    except (OSError, tarfile.TarError):
        return 0  # compressed; or what reading it will name


def of_condition(settings: Config, stream: str, condition: str, profile: Profile) -> Wanted:
    """The images of a stream that the daemon would judge by that condition.

    Raises:
        InputError: the configuration names no condition of the stream, or others than this one.
    """
    rule = next((rule for rule in settings.scoring.conditions if fnmatchcase(stream, rule.streams)), None)
    if rule is None or (rule.names and condition not in rule.names):
        known = ", ".join(rule.names) if rule else "none"
        raise InputError(f"scoring.conditions: stream {stream!r} has no condition {condition!r} (it has {known})")
    namer = rule.namer()

    def is_wanted(record: Record, image: RecordImage) -> bool:
        try:
            prepared = profile.prepare(image.image)
        except ImageError:
            return True  # it is counted as broken where it would be used
        return namer(record, image.event_time_ms, prepared) == condition

    return is_wanted


def collect(
    settings: Config, stream: str, since_ms: int, wanted: Wanted = lambda _, __: True
) -> Iterator[tuple[str, AnyImage]]:
    """(id, image) of the stream's images, oldest first within each partition; broken records are left out.

    Args:
        wanted: False leaves an image out.

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
                if wanted(record, image):
                    found = True
                    yield image.id, image.image
    except (SourceError, FatalSourceError, UnavailableError) as error:
        raise InputError(str(error)) from error
    if not found:
        raise InputError(f"the source holds no such image of stream {stream!r} in that time")


def command_line() -> str:
    """This command, for the lineage of what it makes."""
    return shlex.join(["layerwatch", *sys.argv[1:]])


def print_frames(console: Console, facts: dict[str, Any]) -> None:
    """What the calibration frames of a manifest are worth, or that images look like frames."""
    if facts["frames"]:
        console.print(facts["frames"]["note"], markup=False, highlight=False, soft_wrap=True)


def print_left_out(console: Console, facts: dict[str, Any]) -> None:
    """How many images of a manifest were not used, with some names."""
    for name in ("broken", "duplicates"):
        if count := facts["images"][name]:
            more = "" if count <= len(facts[name]) else ", ..."
            console.print(f"left out {count} {name}: {', '.join(facts[name])}{more}", markup=False, soft_wrap=True)
