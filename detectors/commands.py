"""The library's part of the command line: `fit` and `score`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from detectors.images import ImageError
from detectors.reading import InputError, read_images


def add_commands(commands: Any) -> None:
    """Add `fit` and `score` to an argparse subparser table; each sets `handler(args) -> exit status`."""
    fit = commands.add_parser("fit", help="learn a profile from unlabelled images")
    fit.add_argument("images", nargs="+", help="folders, tar files or image files")
    fit.add_argument("-o", "--output", required=True, help="folder of the profile")
    fit.add_argument("--device", default="auto")
    fit.add_argument("--seed", type=int, default=0)
    fit.set_defaults(handler=_fit)
    score = commands.add_parser("score", help="score images: one line each")
    score.add_argument("profile")
    score.add_argument("images", nargs="+", help="folders, tar files or image files")
    score.add_argument("--device", default="auto")
    score.add_argument("--json", action="store_true", help="one JSON object per line")
    score.set_defaults(handler=_score)


def _fit(args: argparse.Namespace) -> int:
    from detectors.fit import FitOptions, TooFewImagesError, fit_profile  # noqa: PLC0415 - torch takes seconds

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading", total=None)

        def tell(step: str, share: float) -> None:
            bar.update(task, description=step, total=None if share < 0 else 1.0, completed=max(share, 0.0))

        try:
            profile = fit_profile(read_images(args.images), FitOptions(device=args.device, seed=args.seed), tell)
        except (InputError, TooFewImagesError) as error:
            console.print(f"layerwatch fit: {error}", markup=False)
            return 1
    profile.save(args.output)
    images = profile.manifest["images"]
    for name in ("broken", "duplicates"):
        if images[name]:
            console.print(f"left out {images[name]} {name}: {', '.join(profile.manifest[name])}", markup=False)
    console.print(
        f"{args.output}: profile {profile.fingerprint}, {images['fit']} images learned, {images['calibration']} to "
        f"calibrate, {profile.manifest['seconds']} s"
    )
    return 0


def _score(args: argparse.Namespace) -> int:
    from detectors.profile import Profile, ProfileError  # noqa: PLC0415

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
