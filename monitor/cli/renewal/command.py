"""`layerwatch profile renew`: a new version from the images of calm times, unless normal has moved too far."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

import detectors
from detectors.images.reading import InputError
from monitor.cli.console import open_console
from monitor.cli.learning import STREAM_IMAGES
from monitor.cli.options import DURATION_HELP, add_config_option, parse_count, parse_duration, parse_share
from monitor.cli.progress import show_progress
from monitor.cli.renewal.selection import Request
from monitor.config.errors import EXIT_FAILED, EXIT_UNAVAILABLE, as_command_error
from monitor.config.loading import load_config
from monitor.evaluate.settings import MARGIN_S, MAX_SHIFT, SINCE_S
from monitor.fleet.images import JPEG
from monitor.fleet.renewal import RenewalJson
from monitor.store import StoreConfigError, StoreError, open_store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", metavar="STORE", help="a store of profiles (its active version), or STORE@VERSION")
    parser.add_argument("--from-stream", metavar="GLOB", default="*", help="streams to learn from (all it judges)")
    parser.add_argument(
        "--since", type=parse_duration, default=SINCE_S, metavar="DURATION", help=f"{DURATION_HELP} (7d)"
    )
    parser.add_argument(
        "--margin",
        type=parse_duration,
        default=MARGIN_S,
        metavar="DURATION",
        help="how long before and after an alert, and before the newest bucket, images are not calm (1h)",
    )
    parser.add_argument("--max-images", type=parse_count, default=STREAM_IMAGES, metavar="N", help=f"({STREAM_IMAGES})")
    parser.add_argument("--calibrate-only", action="store_true", help="keep the detector: calibrate it anew")
    parser.add_argument(
        "--expected", action="store_true", help="images that people called an expected change count as calm"
    )
    parser.add_argument(
        "--max-shift", type=parse_share, default=MAX_SHIFT, metavar="SHARE", help="that normal may have moved by (3%%)"
    )
    parser.add_argument("--accept-shift", metavar="REASON", default="", help="take a candidate that moved by more")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write the images that moved most there")
    parser.add_argument("--reason", default="", help="kept with the change")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    add_config_option(parser)


def run(args: argparse.Namespace) -> int:
    settings, console = load_config(args.config), Console(stderr=True)
    request = Request(
        args.profile,
        args.from_stream,
        since_s=args.since,
        margin_s=args.margin,
        most=args.max_images,
        calibrate_only=args.calibrate_only,
        expected=args.expected,
        max_shift=args.max_shift,
        accept=args.accept_shift,
        reason=args.reason,
        device=args.device,
    )
    from monitor.cli.renewal.renew import renew  # noqa: PLC0415 - loads torch

    faults = (InputError, detectors.ProfileError, detectors.TooFewImagesError, OSError)
    with (
        as_command_error("profile renew", *faults),
        as_command_error("profile renew", StoreError, StoreConfigError, status=EXIT_UNAVAILABLE),
        closing(open_store(settings.redis, settings.monitor)) as store,
        show_progress(console, "renew") as show,
    ):
        found = renew(store, settings, request, show)
    if args.pictures:
        _write(found, args.pictures)
    if args.json:
        sys.stdout.write(found.model_dump_json() + "\n")
    else:
        _print(open_console(), found)
    return EXIT_FAILED if found.outcome == "refused" else 0


def _write(found: RenewalJson, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, image in enumerate(found.pictures, 1):
        file = f"{i:02d}.jpg"
        (folder / file).write_bytes(base64.b64decode(image.picture.removeprefix(JPEG)))
        lines.append(json.dumps({"file": file, **image.model_dump(include={"id", "signal", "p_value"})}) + "\n")
    (folder / "images.jsonl").write_text("".join(lines), encoding="utf-8")


def _print(console: Console, found: RenewalJson) -> None:
    left_out = "; ".join(f"{count} {why}" for why, count in found.left_out.items() if count) or "none"
    streams = "stream" if found.streams == 1 else "streams"
    lines = [
        f"learned from {found.images} images of {found.hours} calm hours of {found.streams} {streams}",
        f"left out: {left_out}",
    ]
    console.print(Text("\n".join(lines)), soft_wrap=True)
    table = Table(title="How far it has moved from earlier versions", title_justify="left")
    for heading in ("version", "signal", "images", "beyond the cut of", "are", "moved"):
        table.add_column(heading, justify="left" if len(table.columns) < 3 else "right")
    for shift in found.shifts:
        table.add_row(
            f"{shift.version} ({shift.against})",
            Text(shift.signal + (f", {shift.condition}" if shift.condition else "")),
            f"{shift.images} {shift.which}",
            f"{shift.level:.0%}{' at the low end' if shift.end == 'low' else ''}",
            f"{shift.share:.1%}",
            f"{shift.moved:.1%}" if shift.moved else "not surely",
        )
    console.print(table)
    lines = [f"a move of the OOD score below {found.smallest_seen:.1%} cannot be told from chance"]
    if faults := found.faults:
        lines.append(
            f"of {faults.images} known faults version {found.first_version} finds {faults.seen_before} unusual, "
            f"this one {faults.seen}"
        )
    if found.outcome == "refused":
        lines.append(f"{found.store}: refused: {found.reason}")
        lines.append("--pictures FOLDER writes the images that moved most; --accept-shift REASON takes it")
    else:
        lines.append(f"{found.store}: version {found.version} ({found.fingerprint}) is a candidate")
    console.print(Text("\n".join(lines)), soft_wrap=True)
