"""`layerwatch feedback`: say of an alert what it was; export what was said; write the images that it was said of."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path

from monitor.cli.options import add_config_option, user_name
from monitor.config.errors import EXIT_UNAVAILABLE, as_command_error
from monitor.config.loading import load_config
from monitor.core.alert_document import rfc3339
from monitor.core.feedback import KINDS, as_fields
from monitor.fleet.feedback import FeedbackError, Wanted, give_feedback, images_of, read_feedback
from monitor.fleet.history import WINDOW_MS
from monitor.fleet.overview import Overview, Snapshot
from monitor.store import Store, StoreConfigError, StoreError, open_store

INDEX = "images.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One parser per action."""
    common = argparse.ArgumentParser(add_help=False)
    add_config_option(common)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    give = actions.add_parser("give", parents=[common], help="say of an alert, or of an image of it, what it was")
    give.add_argument("alert", help="its id, as in `layerwatch alerts`")
    give.add_argument("kind", choices=KINDS, help="withdrawn: what was said before no longer counts")
    give.add_argument("--image", metavar="ID", default="", help="of one image shown with the alert (default: of all)")
    give.add_argument("--author", default=None, help="who (default: the user's name)")
    give.add_argument("--comment", default="", help="why")
    give.add_argument("--label", metavar="NAME", default="", help="of the set of images it belongs to, as scratches")
    give.set_defaults(action=_give)
    export = actions.add_parser("export", parents=[common], help="all that was said: one JSON object per line")
    export.set_defaults(action=_export)
    images = actions.add_parser("images", parents=[common], help="write the pictures that are kept of what was said")
    images.add_argument("kind", choices=[kind for kind in KINDS if kind != "withdrawn"])
    images.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    images.set_defaults(action=_images)


def run(args: argparse.Namespace) -> int:
    settings = load_config(args.config)
    with (
        as_command_error("feedback", FeedbackError, OSError),
        as_command_error("feedback", StoreError, StoreConfigError, status=EXIT_UNAVAILABLE),
        closing(open_store(settings.redis, settings.monitor)) as store,
    ):
        snapshot = Overview(store, settings.buckets.lateness_ms, reach_ms=WINDOW_MS).snapshot()
        args.action(args, store, snapshot)
    return 0


def _give(args: argparse.Namespace, store: Store, snapshot: Snapshot) -> None:
    author = args.author if args.author is not None else user_name()
    answer = give_feedback(store, snapshot, Wanted(args.alert, args.kind, args.image, author, args.comment, args.label))
    sys.stdout.write(json.dumps(as_fields(answer), ensure_ascii=False) + "\n")


def _export(_: argparse.Namespace, store: Store, __: Snapshot) -> None:
    for answer in read_feedback(store):
        sys.stdout.write(json.dumps(as_fields(answer), ensure_ascii=False) + "\n")


def _images(args: argparse.Namespace, store: Store, snapshot: Snapshot) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    lines = []
    labels: dict[str, Path] = {}
    thumbnails = 0
    for answer, picture in images_of(store, snapshot, read_feedback(store), args.kind):
        file = Path(answer.label, f"{answer.about.alert_id}-{picture.name}.jpg")
        (args.output / file).parent.mkdir(exist_ok=True)
        (args.output / file).write_bytes(picture.jpeg)
        labels.setdefault(answer.label, args.output / answer.label)
        thumbnails += not picture.large
        facts = {
            "file": str(file),
            "image": picture.image,
            "stream": picture.stream,
            "event_time": rfc3339(picture.event_time_ms),
            "thumbnail": not picture.large,
            "feedback": as_fields(answer),
        }
        lines.append(json.dumps(facts, ensure_ascii=False) + "\n")
    (args.output / INDEX).write_text("".join(lines), encoding="utf-8")
    sys.stdout.write(f"{args.output}: {len(lines)} pictures, {thumbnails} of them thumbnails; {INDEX} says which\n")
    sets = [f"--ood {label}={folder}" for label, folder in sorted(labels.items()) if label]
    if sets:
        sys.stdout.write(f"as outlier sets: layerwatch evaluate PROFILE --id IMAGES {' '.join(sets)}\n")
    if thumbnails:
        sys.stderr.write("warning: a thumbnail has fewer pixels than the image had: sharpness, noise and size differ\n")
