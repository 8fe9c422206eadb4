"""The library's part of the command line: `fit`, `score`, `calibrate`, `evaluate` and `profile show`."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from detectors.images.prepare import ImageError
from detectors.images.reading import InputError, read_images
from detectors.methods.registry import REGISTRY
from detectors.profile.spec import PRECISIONS, BackboneError, BackboneSpec

if TYPE_CHECKING:
    from detectors.profile.profile import Profile

IMAGES = "folders, tar files or image files"


def add_commands(commands: Any) -> None:
    """Add the library's commands to an argparse subparser table; each sets `handler(args) -> exit status`."""
    _add_fit(commands.add_parser("fit", help="learn a profile from unlabelled images"))
    score = commands.add_parser("score", help="score images: one line each")
    score.add_argument("profile")
    score.add_argument("images", nargs="+", help=IMAGES)
    score.add_argument("--device", default="auto")
    score.add_argument("--json", action="store_true", help="one JSON object per line")
    score.set_defaults(handler=_score)
    calibrate = commands.add_parser("calibrate", help="calibrate a profile on new ID images, without learning again")
    calibrate.add_argument("profile")
    calibrate.add_argument("images", nargs="*", help=IMAGES)
    calibrate.add_argument("-o", "--output", required=True, help="folder of the new profile")
    calibrate.add_argument("--device", default="auto")
    calibrate.add_argument("--ordered", action="store_true", help="the images are frames in time order")
    calibrate.set_defaults(handler=_calibrate, read=_read)
    evaluate = commands.add_parser("evaluate", help="measure detectors on your own ID and OOD images")
    evaluate.add_argument("profile")
    evaluate.add_argument("--id", nargs="+", required=True, metavar="IMAGES", help=IMAGES)
    evaluate.add_argument("--ood", nargs="+", required=True, action="extend", metavar="NAME=IMAGES")
    evaluate.add_argument("--detectors", nargs="+", default=["all"], metavar="NAME", help=f"all, {', '.join(REGISTRY)}")
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--json", action="store_true")
    evaluate.add_argument("--html", metavar="FILE", help="write a self-contained report")
    evaluate.set_defaults(handler=_evaluate)
    profile = commands.add_parser("profile", help="look at a profile").add_subparsers(required=True)
    show = profile.add_parser("show", help="the model card of a profile")
    show.add_argument("profile")
    show.add_argument("--json", action="store_true")
    show.set_defaults(handler=_show)


def _add_fit(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("images", nargs="*", help=IMAGES)
    fit.add_argument("-o", "--output", required=True, help="folder of the profile")
    fit.add_argument("--detector", choices=tuple(REGISTRY), help="dlsr unless a preset says otherwise")
    fit.add_argument(
        "--preset", choices=("dlsr-paper",), help="dlsr-paper: backbone, layers, size and training as published"
    )
    fit.add_argument("--backbone", metavar="NAME", help="a timm model; the embedded one by default")
    fit.add_argument("--weights", help="embedded, hub (timm's own), random, or a .safetensors or .pth file")
    fit.add_argument("--layers", help="indices (1,2,3) or strides (/4,/8,/16) of the feature layers")
    fit.add_argument("--backbone-arg", action="append", default=[], metavar="KEY=VALUE", help="for timm.create_model")
    fit.add_argument("--mean", type=_triple, metavar="R,G,B", help="of pixels in [0, 1]")
    fit.add_argument("--std", type=_triple, metavar="R,G,B")
    fit.add_argument("--image-size", type=int, metavar="PX", help="side of the square input")
    fit.add_argument("--precision", choices=PRECISIONS, help="of the backbone, here and wherever the profile scores")
    fit.add_argument("--epochs", type=int, help="passes over the images, for the published scores")
    fit.add_argument("--ordered", action="store_true", help="the images are frames in time order")
    fit.add_argument("--device", default="auto")
    fit.add_argument("--seed", type=int, default=0)
    fit.set_defaults(handler=_fit, read=_read)


def _read(args: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    """The images of `fit` and `calibrate`; a program that has other sources puts its own reader in `args.read`."""
    if not args.images:
        raise InputError("no images given: name folders, tar files or image files")
    return read_images(args.images)


def _fit(args: argparse.Namespace) -> int:
    from detectors.profile.fit import (  # noqa: PLC0415 - torch takes seconds
        FitOptions,
        TooFewImagesError,
        fit_profile,
    )

    console = Console(stderr=True)
    try:
        detector, options = _detector(args)
        backbone = _backbone(args)
        fit = FitOptions(detector, backbone, args.device, args.seed, detector_options=options, ordered=args.ordered)
        with _progress(console) as tell:
            profile = fit_profile(args.read(args), fit, tell)
    except (InputError, TooFewImagesError, BackboneError) as error:
        console.print(f"layerwatch fit: {error}", markup=False, soft_wrap=True)
        return 1
    profile.save(args.output)
    facts = profile.manifest
    _tell_left_out(console, facts)
    console.print(
        f"{args.output}: profile {profile.fingerprint}, {facts['images']['fit']} images learned, "
        f"{facts['images']['calibration']} to calibrate, {facts['seconds']} s, {facts['peak_memory_mib']} MiB"
    )
    return 0


def _detector(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from detectors.methods.dlsr_paper import PRESET  # noqa: PLC0415

    published = args.preset == "dlsr-paper"
    name = args.detector or ("dlsr-mfsim" if published else "dlsr")
    options = dict(PRESET) if published else {}
    if (published or args.epochs is not None) and not name.startswith("dlsr-"):
        raise InputError(f"--preset dlsr-paper and --epochs are for dlsr-mse, dlsr-lr and dlsr-mfsim, not {name}")
    if args.epochs is not None:
        options["epochs"] = args.epochs
    return name, options


def _backbone(args: argparse.Namespace) -> BackboneSpec | None:
    published = args.preset == "dlsr-paper"
    given = (args.weights, args.layers, args.mean, args.std, args.image_size)
    if args.backbone is None and not published:
        if any(value is not None for value in given) or args.backbone_arg:
            raise InputError("--weights, --layers, --backbone-arg, --mean, --std and --image-size need --backbone")
        return None if args.precision is None else replace(BackboneSpec.embedded(), precision=args.precision)
    model = args.backbone or "efficientnet_b4"
    # The layers of the paper: stages 1 to 5 of EfficientNet-B4, 1 to 3 of ResNet-50.
    paper_layers = {"efficientnet_b4": "0,1,2,3,4", "resnet50": "1,2,3"}.get(model, "") if published else ""
    layers = args.layers or paper_layers
    strides = tuple(int(part.removeprefix("/")) for part in layers.split(",")) if layers.startswith("/") else ()
    return BackboneSpec(
        model=model,
        weights=args.weights or "hub",
        layers=() if strides or not layers else tuple(int(part) for part in layers.split(",")),
        strides=strides,
        mean=args.mean,
        std=args.std,
        input_px=args.image_size or (224 if published else None),
        args=dict(_argument(text) for text in args.backbone_arg),
        precision=args.precision or "float32",
    )


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--backbone-arg {text}: expected KEY=VALUE")
    try:
        return key, ast.literal_eval(value)  # numbers, True, None; anything else is taken as text
    except (ValueError, SyntaxError):
        return key, value


def _triple(text: str) -> tuple[float, float, float]:
    red, green, blue = (float(part) for part in text.split(","))
    return red, green, blue


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, float], None]]:
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

        def tell(step: str, share: float) -> None:
            bar.update(task, description=step, total=None if share < 0 else 1.0, completed=max(share, 0.0))

        yield tell


def _tell_left_out(console: Console, facts: dict[str, Any]) -> None:
    for name in ("broken", "duplicates"):
        if count := facts["images"][name]:
            more = "" if count <= len(facts[name]) else ", ..."
            console.print(f"left out {count} {name}: {', '.join(facts[name])}{more}", markup=False, soft_wrap=True)


def _score(args: argparse.Namespace) -> int:
    from detectors.profile.profile import Profile, ProfileError  # noqa: PLC0415

    status = 0
    try:
        profile = Profile.load(args.profile, args.device)
        for name, image in read_images(args.images):
            try:
                scores = profile.score([profile.prepare(image, name.encode("utf-8", "backslashreplace"))])
            except ImageError as error:
                sys.stderr.write(f"{name}: {error}\n")
                status = 1
                continue
            sys.stdout.write(_line(name, profile.signals, scores.values[0], scores.p_values[0], args.json) + "\n")
    except (InputError, ProfileError) as error:
        sys.stderr.write(f"layerwatch score: {error}\n")
        return 1
    return status


def _line(name: str, signals: tuple[str, ...], values: Any, p_values: Any, as_json: bool) -> str:
    if as_json:
        rows = zip(signals, values, p_values, strict=True)
        return json.dumps({"name": name, "signals": {s: {"value": float(v), "p": float(p)} for s, v, p in rows}})
    return f"{name}  " + "  ".join(
        f"{s}={v:.4g} (p {p:.3g})" for s, v, p in zip(signals, values, p_values, strict=True)
    )


def _calibrate(args: argparse.Namespace) -> int:
    from detectors.profile.fit import TooFewImagesError, recalibrate  # noqa: PLC0415
    from detectors.profile.profile import Profile, ProfileError  # noqa: PLC0415

    console = Console(stderr=True)
    try:
        profile = Profile.load(args.profile, args.device)
        before = profile.fingerprint
        with _progress(console) as tell:
            recalibrate(profile, args.read(args), args.ordered, tell)
    except (InputError, ProfileError, TooFewImagesError) as error:
        console.print(f"layerwatch calibrate: {error}", markup=False, soft_wrap=True)
        return 1
    profile.save(args.output)
    _tell_left_out(console, profile.manifest)
    count = profile.manifest["images"]["calibration"]
    console.print(f"{args.output}: profile {profile.fingerprint} (was {before}), calibrated on {count} images")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from detectors.evaluation.evaluate import EvaluationError, evaluate  # noqa: PLC0415
    from detectors.evaluation.tables import evaluation_tables  # noqa: PLC0415
    from detectors.profile.profile import Profile, ProfileError  # noqa: PLC0415

    errors = Console(stderr=True)
    try:
        ood = dict(_named(text) for text in args.ood)
        profile = Profile.load(args.profile, args.device)
        names = [name for text in args.detectors for name in text.split(",")]
        with errors.status("evaluating") as status:
            result = evaluate(profile, read_images(args.id), ood, names, bool(args.html), status.update)
    except (InputError, ProfileError, EvaluationError) as error:
        errors.print(f"layerwatch evaluate: {error}", markup=False, soft_wrap=True)
        return 1
    if args.html:
        from detectors.evaluation.report import render  # noqa: PLC0415

        Path(args.html).write_text(render(result), encoding="utf-8")
    if args.json:
        sys.stdout.write(json.dumps(result.document()) + "\n")
        return 0
    console = Console()
    console.print(result.headline, markup=False, soft_wrap=True)
    for table in evaluation_tables(result):
        console.print(table)
    return 0


def _named(text: str) -> tuple[str, Iterator[tuple[str, bytes]]]:
    name, equals, path = text.partition("=")
    if not equals or not name:
        raise InputError(f"--ood {text}: expected NAME=IMAGES")
    return name, read_images([path])


def _show(args: argparse.Namespace) -> int:
    from detectors.evaluation.tables import profile_tables  # noqa: PLC0415
    from detectors.profile.profile import MANIFEST, Profile, ProfileError  # noqa: PLC0415

    try:
        profile: Profile = Profile.load(args.profile, "cpu")
    except ProfileError as error:
        sys.stderr.write(f"layerwatch profile show: {error}\n")
        return 1
    document = json.loads((Path(args.profile) / MANIFEST).read_text(encoding="utf-8"))
    if args.json:
        sys.stdout.write(json.dumps(document) + "\n")
        return 0
    console = Console()
    for table in profile_tables(document, profile.calibration_sizes):
        console.print(table)
    return 0
