"""`layerwatch archive`: score images on Ray, or prepare a fit; report how they differ from a profile's."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

import detectors
from detectors.images.decode import Limits
from detectors.images.reading import InputError
from detectors.images.tones import Tones
from detectors.profile.spec import BackboneError, BackboneSpec
from monitor.cli.backbone_options import add_backbone_options, backbone_of
from monitor.cli.options import add_config_option, parse_count
from monitor.cli.progress import Show, show_progress
from monitor.cli.scoring import add_engine_option
from monitor.config.errors import EXIT_FAILED, CommandError, as_command_error

if TYPE_CHECKING:  # optional packages
    from monitor.cli.archive.reading import Naming
    from monitor.cli.archive.results import Results
    from monitor.cli.archive.shards import Shard

    Begin = Callable[[Results], None]
    Finish = Callable[[Results, Sequence[Shard], Naming, Show], None]

URIS_HELP = "folders, tar files, Parquet files or images; paths or URIs such as s3://bucket/2026/*.tar"
SHOWN_ERRORS = 20
EXTRA = {"ray", "pyarrow", "fsspec"}
"""Packages of the extra `ray`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One parser per action."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    score = actions.add_parser("score", help="value and p-value of each signal of every image, as Parquet files")
    score.add_argument("profile")
    _add_run_options(score)
    score.add_argument("--condition", metavar="NAME", default="", help="p-values by the calibration of that condition")
    add_engine_option(score)
    score.set_defaults(action=_score)
    features = actions.add_parser("features", help="what `fit --features` learns from, as Parquet files")
    _add_run_options(features)
    add_backbone_options(features)
    features.set_defaults(action=_features, preset=None)
    report = actions.add_parser("report", help="how the scored images differ from the profile's: one HTML page")
    report.add_argument("out", help="folder of `archive score`")
    report.add_argument("--html", metavar="FILE", help="where to write the page (default: OUT/report.html)")
    report.add_argument("--json", action="store_true", help="print the alerts, one JSON document a line")
    add_config_option(report)
    report.set_defaults(action=_report)


def run(args: argparse.Namespace) -> int:
    status: int = args.action(args)
    return status


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uris", nargs="+", metavar="URI", help=URIS_HELP)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder of the results, local or a URI")
    parser.add_argument("--stream", default="default", help="of images that name none (default: default)")
    parser.add_argument(
        "--path-pattern",
        default="",
        metavar="REGEX",
        help="finds stream and time in the path of an image: (?P<stream>cam-[0-9]+)/(?P<time>[0-9-]+)/",
    )
    parser.add_argument(
        "--time-format",
        default="",
        metavar="FORMAT",
        help="of times, as strptime has it: %%Y%%m%%d_%%H%%M%%S (default: RFC 3339, or ms since the epoch)",
    )
    for name in ("image", "id", "stream", "time"):
        parser.add_argument(
            f"--{name}-field", default=name, metavar="NAME", help=f"column, or key of a sample's JSON (default: {name})"
        )
    parser.add_argument("--shard-images", type=parse_count, default=1000, metavar="N", help="images of a shard (1000)")
    parser.add_argument(
        "--ray-address", default="", metavar="ADDRESS", help="of a cluster to join (auto inside of one)"
    )
    parser.add_argument("--workers", type=parse_count, default=0, metavar="N", help="default: one per core, 4 per GPU")
    parser.add_argument("--worker-cpus", type=parse_count, default=1, metavar="N", help="cores of a worker (1)")
    parser.add_argument("--device", default="auto")


def _score(args: argparse.Namespace) -> int:
    from monitor.cli.archive.models import keep_profile, loaded  # noqa: PLC0415 - torch takes seconds
    from monitor.ingest.scoring.profiles import layout_of  # noqa: PLC0415 - likewise

    with _errors():
        profile, runs = loaded(args.profile, args.device, args.engine, args.condition)
        facts = {
            "kind": "scores",
            "profile": profile.fingerprint,
            "condition": args.condition,
            "engine": runs.split()[0],
            "layout": layout_of(profile).to_json(),
        }
        # what ran the test images here runs all of them
        return _work(
            args,
            facts,
            {"engine": facts["engine"], "profile": args.output},
            begin=partial(keep_profile, folder=args.profile),
        )


def _features(args: argparse.Namespace) -> int:
    from detectors.profile.backbone import Backbone  # noqa: PLC0415 - torch takes seconds
    from detectors.profile.choice import grids_of  # noqa: PLC0415 - likewise
    from monitor.cli.archive.features import keep_pictures  # noqa: PLC0415 - likewise

    with _errors():
        backbone = Backbone(backbone_of(args) or BackboneSpec.embedded(), args.device)
        grids = backbone.grids if args.grid else grids_of(backbone)
        facts = {
            "kind": "features",
            "backbone": f"{backbone.digest} {backbone.spec.to_json()} {list(grids)}",
            "spec": backbone.spec.to_json(),
            "digest": backbone.digest,
            "grids": list(grids),
        }

        def finish(results: Results, shards: Sequence[Shard], naming: Naming, show: Show) -> None:
            preparer = backbone.preparer(Limits(), Tones())
            keep_pictures(results, shards, naming, preparer, partial(show, "reading the pictures that a fit needs"))

        return _work(args, facts, {"backbone": backbone.spec.to_json(), "grids": grids}, finish=finish)


def _work(
    args: argparse.Namespace,
    facts: Mapping[str, Any],
    more: Mapping[str, Any],
    begin: Begin = lambda _: None,
    finish: Finish = lambda *_: None,
) -> int:
    """`begin`, do the shards that are not finished, then `finish`; returns the exit status."""
    from monitor.cli.archive.cluster import Done, Job, Workers, work_on  # noqa: PLC0415 - optional packages
    from monitor.cli.archive.reading import Naming  # noqa: PLC0415 - likewise
    from monitor.cli.archive.results import Results  # noqa: PLC0415 - likewise
    from monitor.cli.archive.shards import shards_of  # noqa: PLC0415 - likewise

    console = Console(stderr=True)
    fields = {f"{name}_field": getattr(args, f"{name}_field") for name in ("image", "id", "stream", "time")}
    naming = Naming(args.stream, args.path_pattern, args.time_format, **fields)
    results = Results(args.output)
    failed: list[Done] = []
    images = refused = 0
    with show_progress(console, "archive") as show:
        shards = shards_of(args.uris, args.shard_images, lambda step: show(step, -1.0))
        about = {"inputs": args.uris, "naming": asdict(naming), "shard_images": args.shard_images}
        results.begin({**facts, **about}, shards)
        begin(results)
        finished = results.finished()
        todo = {number: shard for number, shard in enumerate(shards) if number not in finished}
        show(_step(len(finished), len(shards), 0, 0.0), len(finished) / len(shards))
        began_s, last = time.monotonic(), len(finished)
        if todo:
            job = Job(args.output, naming, args.device, condition=getattr(args, "condition", ""), **more)
            for done in work_on(todo, job, Workers(args.workers, args.worker_cpus, args.ray_address)):
                last += not done.error
                images, refused = images + done.images, refused + done.refused
                failed += [done] if done.error else []
                show(_step(last, len(shards), images, time.monotonic() - began_s), last / len(shards))
    for done in failed[:SHOWN_ERRORS]:
        console.print(done.error, style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{args.output}: {images} images in {len(todo) - len(failed)} shards, {refused} of them could not be used; "
        f"{len(finished)} shards were finished before, {len(failed)} could not be read",
        markup=False,
        soft_wrap=True,
    )
    if not failed:
        with show_progress(console, "archive") as show:
            finish(results, shards, naming, show)
    if failed:
        console.print("the same command tries again what could not be read", soft_wrap=True)
    return EXIT_FAILED if failed else 0


def _step(finished: int, shards: int, images: int, seconds: float) -> str:
    rate = f", {images} images, {images / seconds:.0f} a second" if images else ""
    return f"{finished} of {shards} shards{rate}"


def _report(args: argparse.Namespace) -> int:
    from monitor.cli.archive.report import write_report  # noqa: PLC0415 - optional packages

    with _errors():
        lines = write_report(args.out, args.html, args.config, args.json)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


@contextmanager
def _errors() -> Iterator[None]:
    """Turn what users can do something about into one line.

    Raises:
        CommandError: of the errors of inputs, profiles and backbones, and where a package of the extra is missing.
    """
    known = (InputError, detectors.ProfileError, BackboneError)
    try:
        with as_command_error("archive", *known):
            yield
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        text = f"layerwatch archive: needs {error.name}: pip install 'layerwatch[ray]'"
        raise CommandError(text) from error
